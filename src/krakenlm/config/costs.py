"""What a configuration costs: parameters, cache, messages. Arithmetic only, no torch."""

from krakenlm.config.model_config import ModelConfig
from krakenlm.config.schedule import allreduces, hidden_allreduces


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model, tied head counted once.

    For Kraken without biases this is ``V d + C d + L N (8 d^2 + 2 d) + N d^2 + d`` when
    ``h head_dim = d`` and ``f = 2 d`` (design.md, section 2, adds the final norm's ``d``).
    """
    d = config.hidden_size
    total = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
    if config.position == "learned":
        total += config.max_position_embeddings * d
    total += config.num_hidden_layers * _layer_parameters(config)
    if config.traits.conjunction:
        total += config.num_sublayers * d * d + (d if config.bias else 0)
    return total + _norm_parameters(config)


def kv_cache_bytes_per_token(config: ModelConfig, bytes_per_element: int = 2) -> int:
    """Keys and values of one token over all layers and sub-layers."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * bytes_per_element


def allreduce_bytes_per_token(config: ModelConfig, bytes_per_element: int = 2) -> int:
    """Elements that one token adds to all AllReduces of a forward pass, in bytes.

    Where a layer's sum carries a part of the channels, the exposed one at the end carries all.
    """
    sums, hidden = allreduces(config), hidden_allreduces(config)
    width, part = config.hidden_size, config.hidden_size // config.message_parts
    return ((sums - hidden) * width + hidden * part) * bytes_per_element


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of forward and backward pass for one token: 6 N + 12 L A T (PaLM, arXiv 2204.02311).

    ``N`` are the parameters in products, so without tables that are only looked up; ``A`` is the
    attention width over all sub-layers. Masked scores count, as is customary.

    Args:
        config: the model.
        sequence_length: T, tokens of a sequence.
    """
    looked_up = config.max_position_embeddings if config.position == "learned" else 0
    if not config.tie_word_embeddings:
        looked_up += config.vocab_size
    multiplied = count_parameters(config) - looked_up * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.attention_width * sequence_length
    return 6.0 * multiplied + attention


def _layer_parameters(config: ModelConfig) -> int:
    d, n, f = config.hidden_size, config.num_sublayers, config.ffn_dim
    query = config.heads_per_sublayer * config.head_dim
    key_value = 2 * config.kv_heads_per_sublayer * config.head_dim
    into_ffn = f * (2 if config.activation == "swiglu" else 1)
    weights = n * d * (query + key_value + query + into_ffn + f)
    biases = n * (query + key_value) if config.has_qkv_bias else 0
    if config.bias:
        biases += n * into_ffn + config.norm_sets * 2 * d
    norms = config.norms_per_layer * config.norm_sets * _norm_parameters(config)
    if config.qk_norm:
        norms += config.norm_sets * 2 * config.head_dim
    return weights + biases + norms


def _norm_parameters(config: ModelConfig) -> int:
    has_bias = config.bias and config.norm == "layernorm"
    return config.hidden_size * (2 if has_bias else 1)
