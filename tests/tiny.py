"""A text, a model and a recipe so small that whole commands run in a moment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from krakenlm.cli.main import main
from krakenlm.config import WIRINGS, ModelConfig

VOCABULARY = 300
CONTEXT = 32
FUNCTIONS: dict[str, dict[str, Any]] = {
    **{wiring: {"wiring": wiring} for wiring in WIRINGS},
    "shared/2": {"wiring": "shared", "message_parts": 2},
    **{
        f"{wiring}:1": {"wiring": wiring, "late_layers": "1"}
        for wiring, traits in WIRINGS.items()
        if traits.awaited_as is not None
    },
}
"""Each wiring, one whose sums carry a part of the channels, and models with layers of two kinds, as
fields of a configuration."""
_LLAMA = {"wiring": "standard", "norm": "rmsnorm", "activation": "swiglu", "bias": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        **_LLAMA, "rope_stretch": "llama3", "rope_factor": 8.0, "rope_original_context": 6
    },
    "linear": {**_LLAMA, "rope_stretch": "linear", "rope_factor": 3.0},
    "qwen2": {**_LLAMA, "qkv_bias": True},
    "qwen3": {**_LLAMA, "qk_norm": True, "head_dim": 6},
    "neox": {
        "wiring": "parallel", "parallel_norms": 2, "rotary_dim": 2, "head_dim": 6, "bias": True,
        "norm": "layernorm", "activation": "gelu-exact",
    },
}  # fmt: skip
"""What other families of models have, but for their positions, which are rotary."""
ADAPTED: dict[str, dict[str, Any]] = {
    "qwen3 as shared:1": {**FAMILIES["qwen3"], "wiring": "shared", "late_layers": "1"},
    "llama as ladder:1": {**FAMILIES["llama"], "wiring": "ladder", "late_layers": "1"},
    "neox as lagged-layer:1": {**FAMILIES["neox"], "wiring": "lagged-layer", "late_layers": "1"},
    "neox as shared:1": {**FAMILIES["neox"], "wiring": "shared", "late_layers": "1"},
}
"""The same with layers of two kinds."""
DOCUMENTS = [f"Document {i}: été 🦊 {'word ' * (i % 7)}\nend {i * i}\n" for i in range(300)]


def text(lines: int = 600) -> str:
    """Regular enough that a tiny model learns from it within a few steps."""
    return "".join(
        f"Line {i}: {'été and 🦊 ' * (i % 4)}end of line {i % 7}.\n" for i in range(lines)
    )


def model_config(**changes: Any) -> ModelConfig:
    """A 2-way Kraken of a few thousand parameters, or what ``changes`` make of it."""
    values: dict[str, Any] = {
        "num_sublayers": 2,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "heads_per_sublayer": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
    }
    return ModelConfig(**{**values, **changes})


def recipe_text(data: Path, output: Path, *, model: str = "", **training: Any) -> str:
    """A recipe; ``training`` overrides or adds entries of its table."""
    table = {
        "steps": 8,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "log_every": 1,
        "precision": "float32",
        "device": "cpu",
        **training,
    }
    model = model or (
        "num_sublayers = 2\nhidden_size = 16\nnum_hidden_layers = 2\nheads_per_sublayer = 2\n"
        f"max_position_embeddings = {CONTEXT}\n"
    )
    return f'data = "{data}"\noutput = "{output}"\n[model]\n{model}\n[training]\n' + "".join(
        f"{key} = {_toml(value)}\n" for key, value in table.items()
    )


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines that are errors; everything else on standard error is progress or a note."""
        return [line for line in self.err.splitlines() if line.startswith("krakenlm:")]


def call(capfd: pytest.CaptureFixture[str], *arguments: Any) -> Outcome:
    """Run one command in this process."""
    capfd.readouterr()
    code: Any = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as leave:
        code = leave.code or 0
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden entries included: contents of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
