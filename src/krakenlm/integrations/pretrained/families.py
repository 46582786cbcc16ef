"""Which families of models are known, and what their configurations mean in fields of ours.

What a family's code computes is read from Transformers' ``modeling_*.py``; what a key stands for
where it is absent, its configuration classes say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.integrations.pretrained.layouts import GPT2, GPT_NEOX, LLAMA, Layout
from krakenlm.integrations.pretrained.refusals import cannot_be
from krakenlm.integrations.pretrained.rope import Fields, read_rope, write_rope

_GATED = {"silu": "swiglu", "swish": "swiglu"}
_PLAIN = {
    "gelu": "gelu-exact",
    "gelu_python": "gelu-exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
}
_PLAIN_NAMES = {"gelu-exact": "gelu", "gelu": "gelu_new"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One of Transformers' ``model_type``.

    Attributes:
        architecture: the class that has the output head.
        layout: how its tensors are named and lie.
        read: the fields of ``ModelConfig`` that a Transformers configuration gives; it raises
            ``KrakenError`` where there are none.
        write: the keys of a ``config.json`` that come nearest to a configuration of ours. Whether
            they are the same model is seen by reading them again.
        dropouts: its keys for dropout where ours has it: on the embedding, on attention weights and
            on what is added to the stream.
    """

    architecture: str
    layout: Layout
    read: Callable[[Any], Fields]
    write: Callable[[ModelConfig], Fields]
    dropouts: tuple[str | None, ...]


def read_common(theirs: Any, family: Family) -> Fields:
    """What all families say alike; dropout is 0 where it differs from place to place."""
    rates = {getattr(theirs, key) if key else 0.0 for key in family.dropouts}
    return {
        "num_sublayers": 1,
        "hidden_size": theirs.hidden_size,
        "num_hidden_layers": theirs.num_hidden_layers,
        "heads_per_sublayer": theirs.num_attention_heads,
        "vocab_size": theirs.vocab_size,
        "max_position_embeddings": theirs.max_position_embeddings,
        "tie_word_embeddings": theirs.tie_word_embeddings,
        "initializer_range": theirs.initializer_range,
        "dropout": float(rates.pop()) if len(rates) == 1 else 0.0,
    }


def write_common(config: ModelConfig) -> Fields:
    """The same, and the names that all but GPT-2 have for a model's shape."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
    }


def _head_dim(theirs: Any) -> int:
    width: int | None = getattr(theirs, "head_dim", None)
    return width or theirs.hidden_size // theirs.num_attention_heads


def _activation(name: Any, known: dict[str, str], key: str) -> str:
    if name not in known:
        raise KrakenError(
            f"{key}={name!r}: this activation cannot be represented: {', '.join(known)} can"
        )
    return known[name]


def _read_gated(theirs: Any) -> Fields:
    """Llama's shape, which Mistral and Qwen share: RMSNorm, rotary positions, SwiGLU."""
    head_dim = _head_dim(theirs)
    return {
        "wiring": "standard",
        "kv_heads_per_sublayer": theirs.num_key_value_heads,
        "head_dim": head_dim,
        "ffn_dim": theirs.intermediate_size,
        "norm": "rmsnorm",
        "norm_eps": theirs.rms_norm_eps,
        "activation": _activation(theirs.hidden_act, _GATED, "hidden_act"),
        **read_rope(theirs.rope_parameters, head_dim, partial=False),
    }


def _write_gated(config: ModelConfig) -> Fields:
    return {
        **write_common(config),
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_dropout": config.dropout,
        **write_rope(config),
    }


def _read_llama(theirs: Any) -> Fields:
    if theirs.attention_bias != theirs.mlp_bias:
        key = "attention_bias" if theirs.attention_bias else "mlp_bias"
        raise cannot_be(key, True, "biases in one half of a layer")
    return {**_read_gated(theirs), "bias": theirs.attention_bias}


def _write_llama(config: ModelConfig) -> Fields:
    return {**_write_gated(config), "attention_bias": config.bias, "mlp_bias": config.bias}


def _read_mistral(theirs: Any) -> Fields:
    return {**_read_gated(theirs), "bias": False}


def _write_mistral(config: ModelConfig) -> Fields:
    return {**_write_gated(config), "sliding_window": None}


def _read_qwen2(theirs: Any) -> Fields:
    return {**_read_gated(theirs), "bias": False, "qkv_bias": True}


def _read_qwen3(theirs: Any) -> Fields:
    if theirs.attention_bias:
        raise cannot_be("attention_bias", True, "biases in one half of a layer")
    return {**_read_gated(theirs), "bias": False, "qk_norm": True}


def _write_qwen(config: ModelConfig) -> Fields:
    return {**_write_gated(config), "use_sliding_window": False, "sliding_window": None}


def _read_gpt2(theirs: Any) -> Fields:
    return {
        "wiring": "standard",
        "ffn_dim": theirs.n_inner or 4 * theirs.hidden_size,
        "position": "learned",
        "norm": "layernorm",
        "norm_eps": theirs.layer_norm_epsilon,
        "activation": _activation(theirs.activation_function, _PLAIN, "activation_function"),
        "bias": True,
    }


def _write_gpt2(config: ModelConfig) -> Fields:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "n_inner": config.ffn_dim,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": _PLAIN_NAMES.get(config.activation, config.activation),
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout),
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
    }


def _read_gpt_neox(theirs: Any) -> Fields:
    if not theirs.attention_bias:
        raise cannot_be("attention_bias", False, "biases in one half of a layer")
    head_dim = _head_dim(theirs)
    return {
        "wiring": "parallel" if theirs.use_parallel_residual else "standard",
        "parallel_norms": 2,
        "head_dim": head_dim,
        "ffn_dim": theirs.intermediate_size,
        "norm": "layernorm",
        "norm_eps": theirs.layer_norm_eps,
        "activation": _activation(theirs.hidden_act, _PLAIN, "hidden_act"),
        "bias": True,
        **read_rope(theirs.rope_parameters, head_dim, partial=True),
    }


def _write_gpt_neox(config: ModelConfig) -> Fields:
    rope = write_rope(config)
    return {
        **write_common(config),
        "intermediate_size": config.ffn_dim,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": _PLAIN_NAMES.get(config.activation, config.activation),
        "use_parallel_residual": config.traits.norms_per_layer == 1,
        "attention_bias": True,
        "attention_dropout": config.dropout,
        "hidden_dropout": config.dropout,
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": (config.rotary_dim or config.head_dim) / config.head_dim,
        "rope_scaling": rope["rope_scaling"],
    }


_ONE_DROPOUT = ("attention_dropout", None)

FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        layout=LLAMA,
        read=_read_llama,
        write=_write_llama,
        dropouts=_ONE_DROPOUT,
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        layout=LLAMA,
        read=_read_mistral,
        write=_write_mistral,
        dropouts=_ONE_DROPOUT,
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        layout=LLAMA,
        read=_read_qwen2,
        write=_write_qwen,
        dropouts=_ONE_DROPOUT,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        layout=LLAMA,
        read=_read_qwen3,
        write=_write_qwen,
        dropouts=_ONE_DROPOUT,
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        layout=GPT2,
        read=_read_gpt2,
        write=_write_gpt2,
        dropouts=("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        layout=GPT_NEOX,
        read=_read_gpt_neox,
        write=_write_gpt_neox,
        dropouts=("attention_dropout", "hidden_dropout"),
    ),
}
