"""Which model does a run start from? One of random weights, or one that is adapted."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import krakenlm  # noqa: F401  AutoConfig knows "kraken" from here on
from krakenlm.config import MODEL_TYPE, OF_TRAINING, ModelConfig, awaited, laid_out
from krakenlm.data.manifest import Manifest
from krakenlm.errors import KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.hf_trainer import checkpoint_activations
from krakenlm.integrations.pretrained.configurations import TOKENS
from krakenlm.integrations.rewiring import state_for
from krakenlm.model.checkpoint import read_config
from krakenlm.train.recipe import Adaptation, Recipe
from krakenlm.train.teacher import Teacher


def start_model(recipe: Recipe, manifest: Manifest) -> PreTrainedModel:
    """The model before its first step; where it is adapted, with the weights of its teacher."""
    torch.manual_seed(recipe.training.seed)
    tokens = dict.fromkeys(TOKENS, manifest.eos_id)
    if recipe.adapt is not None:
        own = AutoConfig.from_pretrained(recipe.adapt.teacher)
        tokens = {name: getattr(own, name) for name in TOKENS}
    config = AutoConfig.for_model(MODEL_TYPE, **recipe.trained_model.to_dict(), **tokens)
    if recipe.adapt is None:
        model = AutoModelForCausalLM.from_config(config)
    else:
        model = with_weights_of(recipe.adapt.teacher, config)
        _freeze(model, recipe.adapt)
    if recipe.training.gradient_checkpointing:
        checkpoint_activations(model)
    return model


def with_weights_of(directory: Path, config: KrakenConfig) -> KrakenForCausalLM:
    """A model whose weights, in float32, are those of a folder, laid out as ``config`` says.

    Raises:
        KrakenError: the folder is no whole model.
    """
    model = _of_tensors(config, state_for(directory, config.to_model_config(), torch.float32))
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, f"the folder's tensors are those of its configuration: {left}"
    return model


def teacher_of(model: KrakenForCausalLM) -> Teacher:
    """The model that ``model``, before its first step, was; weights that stay are shared."""
    config = awaited(model.config.to_model_config())
    state = {
        name: parameter.detach().clone() if parameter.requires_grad else parameter
        for name, parameter in model.named_parameters()
    }
    teacher = _of_tensors(KrakenConfig.from_model_config(config), state)
    return Teacher(teacher.eval().requires_grad_(False))


def _of_tensors(config: KrakenConfig, state: Mapping[str, Tensor]) -> KrakenForCausalLM:
    """A model that holds these very tensors; none are drawn or copied."""
    with torch.device("meta"):
        model = KrakenForCausalLM(config)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model


def check_teacher(adaptation: Adaptation, model: ModelConfig) -> None:
    """Refuse a teacher that the model cannot be an adapted one of.

    Raises:
        KrakenError: the folder is no model, or not of the same weights, or its sums are not
            awaited.
    """
    stored = read_config(adaptation.teacher)
    where = f"[adapt] teacher={adaptation.teacher}"
    if model.traits.awaited_as is None:
        raise KrakenError(
            f"[adapt]: a {model.wiring} model has no weights that another wiring shares: adapt to "
            "shared, lagged, lagged-layer or ladder"
        )
    if stored.traits.awaited_as is not None:
        raise KrakenError(
            f"{where}: its sums are late already ({stored.wiring}): give the model that it was "
            "before, whose sums are awaited"
        )
    ours, theirs = (laid_out(config, 1).to_dict() for config in (awaited(model), stored))
    different = [name for name in ours if ours[name] != theirs[name] and name not in OF_TRAINING]
    if different:
        raise KrakenError(
            f"{where} is another model than the recipe's: they differ in {', '.join(different[:4])}"
        )


def _freeze(model: KrakenForCausalLM, adaptation: Adaptation) -> None:
    """Leave alone what computes what it did: layers before the first late one, the vocabulary."""
    decoder = model.model
    first_late = model.config.to_model_config().late_layer_indices[0]
    for layer in decoder.layers[:first_late]:
        layer.requires_grad_(False)
    if not adaptation.train_embeddings:
        decoder.embed_tokens.requires_grad_(False)
        model.lm_head.requires_grad_(False)
        if model.config.position == "learned":
            decoder.embed_positions.requires_grad_(False)
