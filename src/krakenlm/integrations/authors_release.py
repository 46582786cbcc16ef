"""Checkpoints of the authors' release (github.com/rohan-bp/kraken) into the canonical layout.

Their file is a ``torch.save`` dictionary whose ``model`` holds one tensor a sub-layer and layer,
``transformer.h.{sub-layer}.{layer}.attn.c_attn.weight`` and so on, and whose ``model_args`` says
the shape. Ours stacks the sub-layers of a layer: ``model.layers.{layer}.attention.qkv.weight``.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from krakenlm.config import ModelConfig
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.files import whole_directory, write_json
from krakenlm.integrations.fitting_tokenizer import fitting_tokenizer

Shape = tuple[int, ...]

_COMPILED_PREFIX = "_orig_mod."
_COUNTS = (
    "n_layer",
    "n_head",
    "n_embd",
    "block_size",
    "vocab_size",
    "n_heads_in_split",
    "ffn_expansion",
)
_SWITCHES = ("bias", "is_split")

# Parts of a layer: the authors' name and ours.
_LAYER_PARTS = {
    "ln_1": "norm_1",
    "ln_2": "norm_2",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.output",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}

# The causal mask, which nanoGPT's attention kept as a buffer before PyTorch 2.0.
_MASK_BUFFER = re.compile(r"transformer\.h\.\d+\.\d+\.attn\.bias")


def convert(checkpoint: Path, out: Path, tokenizer: str | None = None) -> ModelConfig:
    """Write the model of ``checkpoint`` to the folder ``out``, whole or not at all.

    The result loads with ``AutoModelForCausalLM.from_pretrained(out)``. No code in the file is
    run: only tensors and plain values are read.

    Args:
        checkpoint: a file of the authors' training script.
        out: gets ``config.json`` and ``model.safetensors``.
        tokenizer: a folder or Hub name whose tokenizer goes into ``out`` as well, since the
            authors' checkpoints hold none; commands that read or write text need one.

    Returns:
        The converted model's configuration.

    Raises:
        KrakenError: the file cannot be read or needs code, its ``model_args`` are incomplete or
            wrong, its tensors do not fit them (all named), or ``out`` cannot be written.
    """
    state, model_args = _read(Path(checkpoint))
    try:
        config = _config(model_args)
    except KrakenError as error:
        raise KrakenError(f"{checkpoint}: {error}") from error
    _check_tensors(state, _expected_shapes(config), checkpoint)
    tied = torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    config = config.replace(tie_word_embeddings=tied)
    words = None if tokenizer is None else fitting_tokenizer(tokenizer, config.vocab_size)
    with whole_directory(out) as folder:
        write_json(folder / "config.json", config.to_hf_dict())
        _save(dict(_canonical(config, state)), folder / "model.safetensors")
        if words is not None:
            words.save_pretrained(str(folder))
    return config


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries ``model``, without the prefix of a compiled model, and ``model_args``."""
    if not path.is_file():
        raise KrakenError(f"no checkpoint file at {path}: give the .pt file of a training run")
    try:
        content = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except PermissionError as error:
        raise KrakenError(f"cannot read {path}: permission denied") from error
    except Exception as error:  # damaged files fail in any way inside zip reader and unpickler
        raise KrakenError(_why_unreadable(path, error)) from error
    entries = {}
    for key in ("model", "model_args"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise KrakenError(
                f"{path} is no checkpoint of the authors' training script: it needs a dictionary "
                f"with the dictionaries 'model' and 'model_args', and {key!r} is missing"
            )
        entries[key] = content[key]
    state = {str(name).removeprefix(_COMPILED_PREFIX): t for name, t in entries["model"].items()}
    return state, entries["model_args"]


def _why_unreadable(path: Path, error: Exception) -> str:
    needed = re.search(r"GLOBAL ([\w.]+)", str(error))
    if needed:
        return (
            f"{path} contains code or objects beyond tensors and plain values ({needed[1]}) and "
            "was not read: whoever trusts it can load it with torch.load(..., weights_only=False) "
            "and torch.save its entries 'model' and 'model_args' alone"
        )
    return (
        f"cannot read {path}: it is truncated, damaged or not written by torch.save (1.6 or "
        "newer); copy or download it again"
    )


def _config(model_args: Mapping[str, Any]) -> ModelConfig:
    """The configuration that ``model_args`` describe, its head taken as tied."""
    missing = [key for key in (*_COUNTS, *_SWITCHES, "dropout") if key not in model_args]
    if missing:
        raise KrakenError(
            f"model_args lacks {', '.join(missing)}: only checkpoints of the authors' training "
            "script are converted"
        )
    bad = [f"{key}={model_args[key]!r}" for key in _COUNTS if not _is_count(model_args[key])]
    if bad:
        raise KrakenError(f"model_args has {', '.join(bad)}: needs whole numbers of 1 or more")
    bad = [f"{key}={model_args[key]!r}" for key in _SWITCHES if type(model_args[key]) is not bool]
    if bad:
        raise KrakenError(f"model_args has {', '.join(bad)}: needs True or False")
    if not model_args["is_split"]:
        raise KrakenError(
            "model_args has is_split=False, a standard GPT and not a Kraken: only Kraken "
            "checkpoints are converted"
        )
    heads, width = model_args["n_heads_in_split"], model_args["n_embd"]
    if model_args["n_head"] % heads:
        raise KrakenError(
            f"model_args has n_head={model_args['n_head']}, no multiple of "
            f"n_heads_in_split={heads}: the number of sub-layers is their quotient"
        )
    try:
        return ModelConfig(
            wiring="kraken",
            num_sublayers=model_args["n_head"] // heads,
            hidden_size=width,
            num_hidden_layers=model_args["n_layer"],
            heads_per_sublayer=heads,
            ffn_dim=model_args["ffn_expansion"] * width,
            vocab_size=model_args["vocab_size"],
            max_position_embeddings=model_args["block_size"],
            bias=model_args["bias"],
            dropout=model_args["dropout"],
        )
    except ConfigError as error:
        raise KrakenError(f"model_args describe an impossible model: {error}") from error


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The authors' tensors, by name."""
    n, d, f = config.num_sublayers, config.hidden_size, config.ffn_dim
    weights: dict[str, Shape] = {
        "ln_1": (d,),
        "ln_2": (d,),
        "attn.c_attn": (3 * d, d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (f, d),
        "mlp.c_proj": (d, f),
    }
    shapes: dict[str, Shape] = {
        "transformer.wte.weight": (config.vocab_size, d),
        "transformer.wpe.weight": (config.max_position_embeddings, d),
        "lm_head.weight": (config.vocab_size, d),
    }
    parts = {
        f"transformer.h.{i}.{layer}.{part}": shape
        for i in range(n)
        for layer in range(config.num_hidden_layers)
        for part, shape in weights.items()
    }
    parts |= {"transformer.conjunction": (d, n * d), "transformer.ln_f": (d,)}
    for part, shape in parts.items():
        shapes[f"{part}.weight"] = shape
        if config.bias:
            shapes[f"{part}.bias"] = shape[:1]
    return shapes


def _check_tensors(state: Mapping[str, Any], expected: Mapping[str, Shape], path: Path) -> None:
    """Raise one error that names every missing, unexpected and misshapen tensor."""
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in state]
    unexpected = [
        f"{name} {_describe(value)}"
        for name, value in state.items()
        if name not in expected and not _MASK_BUFFER.fullmatch(name)
    ]
    misshapen = [
        f"{name} is {_describe(state[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and not _fits(state[name], shape)
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong": misshapen}
    problems = [f"{kind}: {', '.join(names)}" for kind, names in found.items() if names]
    if problems:
        raise KrakenError(
            f"the tensors of {path} are not those of its model_args, and nothing was written: "
            f"{'; '.join(problems)}. Give the file as the authors' training script saved it"
        )


def _fits(value: Any, shape: Shape) -> bool:
    return _is_plain(value) and value.is_floating_point() and value.shape == shape


def _is_plain(value: Any) -> bool:
    """A tensor with a number for every element: neither sparse nor without memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _describe(value: Any) -> str:
    if not _is_plain(value):
        return f"a {getattr(value, 'layout', type(value).__name__)}"
    kind = "" if value.is_floating_point() else f" of {value.dtype}"
    return f"{list(value.shape)}{kind}"


def _canonical(config: ModelConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of ``KrakenForCausalLM``."""
    n, d = config.num_sublayers, config.hidden_size
    kinds = ("weight", "bias") if config.bias else ("weight",)
    yield "model.embed_tokens.weight", state["transformer.wte.weight"]
    yield "model.embed_positions.weight", state["transformer.wpe.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _LAYER_PARTS.items():
            for kind in kinds:
                sublayers = [state[f"transformer.h.{i}.{layer}.{theirs}.{kind}"] for i in range(n)]
                yield f"model.layers.{layer}.{ours}.{kind}", torch.stack(sublayers)
    # Their one map reads the streams side by side; ours has a map a stream: [d, n d] to [n, d, d].
    joined = state["transformer.conjunction.weight"].view(d, n, d)
    yield "model.conjunction.weight", joined.transpose(0, 1)
    if config.bias:
        yield "model.conjunction.bias", state["transformer.conjunction.bias"].unsqueeze(0)
    for kind in kinds:
        yield f"model.norm.{kind}", state[f"transformer.ln_f.{kind}"].unsqueeze(0)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", state["lm_head.weight"]


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
