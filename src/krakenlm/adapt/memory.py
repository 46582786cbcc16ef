"""How much memory will adapting a model take? Arithmetic, said before it starts."""

from krakenlm.config import ModelConfig, count_parameters
from krakenlm.train.recipe import Recipe

_FLOAT = 4
# Weights that are trained: themselves, their gradient, Adam's two moments, the teacher's copy.
_COPIES_TRAINED = 5
# Tensors as large as the logits that live at once: the model's, the teacher's, a gradient.
_OF_LOGITS = 3
# Of activations that a layer keeps for its gradient, as widths of the stream: inputs of norms and
# maps, queries, keys and values, the streams that are compared.
_WIDTHS_KEPT = 14


def bytes_needed(recipe: Recipe) -> int:
    """Of weights, gradients, optimizer state, activations and logits of one process, in float32."""
    model, settings = recipe.model, recipe.training
    total, trained = count_parameters(model), _trained(recipe)
    length = settings.sequence_length or model.max_position_embeddings
    tokens = settings.batch_size * length
    late = model.num_hidden_layers - model.late_layer_indices[0]
    columns = model.num_sublayers * model.ffn_dim
    widest = columns * (3 if model.activation == "swiglu" else 2)
    kept = late * (_WIDTHS_KEPT * model.hidden_size + widest)
    per_token = kept + _OF_LOGITS * model.vocab_size
    return _FLOAT * (total - trained + _COPIES_TRAINED * trained + tokens * per_token)


def _trained(recipe: Recipe) -> int:
    """Parameters that learn: those of the layers from the first late one on, and the last norm."""
    model, adaptation = recipe.model, recipe.adapt
    assert adaptation is not None, "the recipe adapts a model"
    of_layers = count_parameters(model) - _of_vocabulary(model)
    share = 1 - model.late_layer_indices[0] / model.num_hidden_layers
    of_vocabulary = _of_vocabulary(model) if adaptation.train_embeddings else 0
    return round(of_layers * share) + of_vocabulary


def _of_vocabulary(model: ModelConfig) -> int:
    rows = model.vocab_size * (1 if model.tie_word_embeddings else 2)
    if model.position == "learned":
        rows += model.max_position_embeddings
    return rows * model.hidden_size
