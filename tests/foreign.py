"""Tiny models of the families that ``krakenlm convert`` brings in, with random weights."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 310
CONTEXT = 96
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 36,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 3}
# Of four pairs, with this base, one is left alone, one stretched in part and two whole.
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_NEOX = {**_SHAPE, "num_attention_heads": 3}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_GROUPED, "head_dim": 8},
    "llama, tied, llama3": {
        "model_type": "llama", **_GROUPED, "head_dim": 8, "tie_word_embeddings": True,
        "rope_parameters": _LLAMA3, "rms_norm_eps": 1e-3,
    },
    "llama, linear, biases": {
        "model_type": "llama", **_GROUPED, "rope_parameters": _LINEAR, "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {"model_type": "mistral", **_GROUPED, "head_dim": 6, "sliding_window": None},
    "mistral, a window that is the context": {
        "model_type": "mistral", **_GROUPED, "sliding_window": CONTEXT,
    },
    "qwen2, tied": {"model_type": "qwen2", **_GROUPED, "tie_word_embeddings": True},
    "qwen2, a window that is not used": {
        "model_type": "qwen2", **_GROUPED, "use_sliding_window": False, "sliding_window": 8,
    },
    "qwen3": {"model_type": "qwen3", **_GROUPED, "head_dim": 10},
    "qwen3, tied": {
        "model_type": "qwen3", **_GROUPED, "head_dim": 4, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 3, "n_head": 6,
        "n_positions": CONTEXT, "layer_norm_epsilon": 1e-3,
    },
    "gpt2, untied, another width": {
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 3,
        "n_positions": CONTEXT, "n_inner": 48, "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
    "gpt_neox": {
        "model_type": "gpt_neox", **_NEOX,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.25,
        },
    },
    "gpt_neox, one after the other": {
        "model_type": "gpt_neox", **_NEOX, "use_parallel_residual": False, "hidden_act": "gelu_new",
        "tie_word_embeddings": True,
        "rope_parameters": {**_LINEAR, "partial_rotary_factor": 0.5},
    },
}  # fmt: skip

IDS = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(3))


def make(name: str, **changes: Any) -> Any:
    """Transformers' model, every weight drawn at random, norms and biases too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**MODELS[name], **_ENDS, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


_ENDS = {"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 2}


def logits_of(model: Any, ids: Tensor = IDS) -> Tensor:
    """Of all positions."""
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    return logits


def loaded(folder: Path) -> Any:
    """The model that Transformers loads from a folder."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """All that lie in a folder's safetensors files."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two folders hold the same ones, bit for bit."""
    first, second = tensors_in(one), tensors_in(other)
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name])
        for name, tensor in first.items()
    )
