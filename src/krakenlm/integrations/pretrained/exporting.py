"""A model folder becomes one that Transformers reads without krakenlm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from krakenlm.config import ModelConfig, laid_out, without_degree
from krakenlm.errors import KrakenError
from krakenlm.files import whole_directory, write_json
from krakenlm.integrations.pretrained.configurations import (
    TOKENS,
    differences,
    understand,
    write_config,
)
from krakenlm.integrations.pretrained.families import FAMILIES
from krakenlm.integrations.pretrained.importing import ORIGINAL_CONFIG
from krakenlm.integrations.pretrained.layouts import entries
from krakenlm.integrations.rewiring import canonical_tensors, carry_over
from krakenlm.model.checkpoint import read_config, stored_dtype
from krakenlm.model.tensor_files import read_object, write_tensors


def export_model(source: Path, out: Path) -> str:
    """Write a model folder in the layout of a family that Transformers knows.

    That is the family that it was converted from, else one that has such models. The tensors have
    the bits of the model's, and where it was converted from that family those of the original.

    Args:
        source: a model folder, laid out for any number of branches.
        out: becomes a folder of Transformers, whole or not at all, with the tokenizer.

    Returns:
        The family's ``model_type``.

    Raises:
        KrakenError: no family has such a model, ``source`` is none, or ``out`` cannot be written.
    """
    stored = read_config(source)
    config = _awaited(stored, source)
    original = _original(source)
    values = _config_json(config, original, source)
    dtype = str(stored_dtype(source)).removeprefix("torch.")
    for key in ("dtype", "torch_dtype"):  # the second is the name of older versions
        if key in values or key == "dtype":
            values[key] = dtype
    with whole_directory(out) as folder:
        write_json(folder / "config.json", values)
        write_tensors(_their_tensors(source, config, values["model_type"]), folder)
        carry_over(source, folder, left_out=[ORIGINAL_CONFIG])
    return str(values["model_type"])


def _awaited(stored: ModelConfig, source: Path) -> ModelConfig:
    """The model as one branch of a wiring whose sums are awaited at once."""
    config = without_degree(stored)
    traits = config.traits
    if traits.own_norms:
        raise KrakenError(
            f"{source}: a {config.wiring} model has norms for each of its "
            f"{config.num_sublayers} sub-layers, which no model of Transformers' own has: load it "
            "with AutoModelForCausalLM and krakenlm installed"
        )
    if traits.awaited_as is not None:
        raise KrakenError(
            f"{source}: the late sums of a {config.wiring} model are another function than any "
            f"model of Transformers' own has: export a {traits.awaited_as} model, or one of one "
            f"branch that is the same; `krakenlm convert --wiring {traits.awaited_as}` gives the "
            "weights that wiring, and they must then be trained further"
        )
    return laid_out(config, 1)


def _original(source: Path) -> dict[str, Any] | None:
    path = Path(source) / ORIGINAL_CONFIG
    return read_object(path) if path.is_file() else None


def _config_json(
    config: ModelConfig, original: dict[str, Any] | None, source: Path
) -> dict[str, Any]:
    """The original's, where the model is still one of that, else a new one."""
    first: list[str] = []
    if original is not None:
        try:
            if not differences(config, understand(original).config):
                return dict(original)
        except KrakenError as error:
            raise KrakenError(f"{source}/{ORIGINAL_CONFIG}: {error}") from error
        first = [str(original["model_type"])]
    refusals = []
    for model_type in dict.fromkeys([*first, *FAMILIES]):
        try:
            return {**write_config(config, model_type), **_tokens(source)}
        except KrakenError as refusal:
            refusals.append(str(refusal))
    nearest = min(refusals, key=len)
    raise KrakenError(f"{source}: no family that is known has such models: {nearest}")


def _tokens(source: Path) -> dict[str, Any]:
    values = read_object(Path(source) / "config.json")
    return {key: values[key] for key in TOKENS if key in values}


def _their_tensors(
    source: Path, config: ModelConfig, model_type: str
) -> Iterator[tuple[str, Tensor]]:
    layout = FAMILIES[model_type].layout
    by_name = {entry.name: entry for entry in entries(config, layout)}
    for name, tensor in canonical_tensors(source, config):
        yield from by_name[name].to_theirs(tensor)
