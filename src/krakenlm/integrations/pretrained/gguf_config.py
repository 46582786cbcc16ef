"""What the metadata of a GGUF file says, as a ``config.json`` of the family that it holds.

Transformers reads less of it: it takes no notice of stretched rotary frequencies and of biases
that its configuration does not name. Here every key of the model is known or refused.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from krakenlm.errors import KrakenError
from krakenlm.integrations.pretrained.refusals import cannot_be

FREQUENCIES = "rope_freqs.weight"
"""The tensor by which llama3's frequencies are divided."""

# For keys behind the family's name: what a ``config.json`` calls them.
_COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_ROTARY = {
    **_COMMON,
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "attention.key_length": "head_dim",
}
_NAMES: dict[str, dict[str, str]] = {
    "llama": _ROTARY,
    "qwen2": _ROTARY,
    "qwen3": _ROTARY,
    "gpt2": {
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
}
# These say once more what others do.
_CHECKED = {"rope.dimension_count", "attention.value_length"}
_HARMLESS = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
_SCALING = {
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scale_linear",
}
_OPTIONAL = {"attention.head_count_kv", "attention.key_length", "rope.freq_base", "n_inner"}
# What llama.cpp takes where Llama's configuration is silent.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_TOLERANCE = 1e-4
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def config_of(
    fields: Mapping[str, Any], vocabulary: int, tensors: Collection[str], divisors: Sequence[float]
) -> dict[str, Any]:
    """The contents of a ``config.json``.

    Args:
        fields: the file's metadata.
        vocabulary: rows of its embedding.
        tensors: names of its tensors.
        divisors: what is in ``FREQUENCIES``; empty where there is no such tensor.

    Raises:
        KrakenError: a family that is not known, or a key that is not, by name.
    """
    family = str(fields.get("general.architecture"))
    if family not in _NAMES:
        raise KrakenError(
            f"general.architecture={family!r}: GGUF files of this family cannot be brought in: "
            f"only {', '.join(_NAMES)} can"
        )
    names = _NAMES[family]
    of_model = {
        key.removeprefix(f"{family}."): value
        for key, value in fields.items()
        if key.startswith(f"{family}.")
    }
    for key, value in of_model.items():
        if key not in {*names, *_CHECKED, *_SCALING, *_HARMLESS} and value not in (0, False):
            raise cannot_be(f"{family}.{key}", value, "what this key of the file asks for")
    for key in names:
        if key not in of_model and key not in _OPTIONAL:
            raise KrakenError(f"{family}.{key} is missing in the file: copy it again")
    config = {names[key]: value for key, value in of_model.items() if key in names}
    config |= {"model_type": family, "vocab_size": vocabulary, **_tokens(fields)}
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if family != "gpt2":
        _add_rope(config, of_model, divisors)
    return config


def _tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens that begin, end and pad, None where there is none."""
    ids = {key: fields.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", *_ENDS)}
    ends = list(dict.fromkeys(ids[key] for key in _ENDS if ids[key] is not None))
    return {
        "bos_token_id": ids["bos_token_id"],
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }


def _add_rope(
    config: dict[str, Any], of_model: Mapping[str, Any], divisors: Sequence[float]
) -> None:
    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("rope_theta", 10000.0)
    head_dim = config.setdefault("head_dim", config["hidden_size"] // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if of_model.get(key, head_dim) != head_dim:
            raise cannot_be(key, of_model[key], f"another width than that of heads, {head_dim},")
    kind = of_model.get("rope.scaling.type", "none")
    factor = of_model.get("rope.scaling.factor", of_model.get("rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise cannot_be("rope.scaling.type", kind, "frequencies of this kind")
    if factor not in (0, 1) and (kind == "linear" or "rope.scale_linear" in of_model):
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if divisors:
        if "rope_scaling" in config:
            raise KrakenError(f"{FREQUENCIES} and rope.scaling together cannot be represented")
        config["rope_scaling"] = _llama3(config["rope_theta"], head_dim, divisors)


def _llama3(theta: float, head_dim: int, divisors: Sequence[float]) -> dict[str, Any]:
    """The way of stretching that divides frequencies by these numbers.

    The file holds them alone: the largest is the factor, and the rest are compared with what
    Llama's usual numbers make of it.
    """
    factor = round(max(divisors), 4)
    low, high, original = _LLAMA3.values()
    expected = []
    for pair in range(head_dim // 2):
        turns = original / (2 * math.pi * theta ** (2 * pair / head_dim))
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        expected.append(1 / (kept + (1 - kept) / factor))
    if len(expected) != len(divisors) or any(
        abs(found - wanted) > _TOLERANCE * wanted
        for found, wanted in zip(divisors, expected, strict=True)
    ):
        raise KrakenError(
            f"{FREQUENCIES}: frequencies divided by these numbers cannot be represented: give the "
            "folder that the file was made of"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
