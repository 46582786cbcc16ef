"""A model's weights under another wiring, laid out for another number of branches."""

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from krakenlm.config import ModelConfig, laid_out, rewired, with_sublayers
from krakenlm.errors import KrakenError
from krakenlm.files import whole_directory, write_json
from krakenlm.model.checkpoint import read_config, stored_dtype, stream_shard
from krakenlm.model.shard import undivided
from krakenlm.model.tensor_files import INDEX, read_object, write_tensors

# What a model folder holds beside its weights and their configuration: tokenizer, chat template,
# how to generate, what it was converted from.
_CARRIED_OVER = (".json", ".jinja", ".txt", ".model")
_OF_A_LAYOUT = ("heads_per_sublayer", "kv_heads_per_sublayer", "ffn_dim")
_LEFT_OUT = {"config.json", INDEX}


@dataclass(frozen=True)
class Rewired:
    """What a model became.

    Attributes:
        config: of the new model.
        before: wiring and branches of the old one, in words.
        is_another_function: the same weights compute something else than they were trained for.
    """

    config: ModelConfig
    before: str
    is_another_function: bool

    @classmethod
    def of(cls, stored: ModelConfig, wanted: ModelConfig) -> "Rewired":
        """What became of ``stored`` where it was written as ``wanted``."""
        return cls(
            config=wanted,
            before=f"{stored.wiring}, {stored.num_sublayers} sub-layers",
            is_another_function=_function_of(stored) != _function_of(wanted),
        )


def state_as(directory: Path, config: ModelConfig) -> dict[str, Tensor] | None:
    """A checkpoint's tensors, where its N is a choice and ``config`` chooses another one.

    Args:
        directory: a model folder.
        config: of ``KrakenForCausalLM``, whose names the tensors have.

    Returns:
        None where the file's own tensors are those of ``config``, or cannot become them.

    Raises:
        KrakenError: ``directory`` is no whole model.
    """
    stored = read_config(directory)
    if stored.wiring != config.wiring or stored.num_sublayers == config.num_sublayers:
        return None
    try:
        chosen = with_sublayers(stored, config.num_sublayers)
    except KrakenError:
        return None
    if any(getattr(chosen, name) != getattr(config, name) for name in _OF_A_LAYOUT):
        return None
    return state_for(directory, chosen)


def lay_out(directory: Path, num_sublayers: int, dtype: torch.dtype | None = None) -> None:
    """Store a model folder's weights, in their place, as another number of branches or type.

    The caller sees to it that nobody finds the folder half changed.

    Raises:
        KrakenError: ``directory`` is no whole model, or its weights cannot be divided so.
    """
    stored = read_config(directory)
    if num_sublayers == stored.num_sublayers and dtype in (None, stored_dtype(directory)):
        return
    wanted = laid_out(stored, num_sublayers)
    state = state_for(directory, wanted, dtype)
    for path in directory.glob("model*.safetensors*"):
        path.unlink()
    write_tensors(state.items(), directory)
    file = directory / "config.json"
    values = {**read_object(file), **wanted.to_hf_dict()}
    if dtype is not None:
        values["dtype"] = str(dtype).removeprefix("torch.")
    write_json(file, values)


def _function_of(config: ModelConfig) -> tuple[object, ...]:
    """What decides what the same weights compute."""
    branches = config.num_sublayers if config.traits.depends_on_degree else None
    return config.wiring, branches, config.message_parts, config.late_layers


def state_for(
    directory: Path, config: ModelConfig, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """A checkpoint's tensors laid out for a configuration of the same weights.

    Args:
        directory: a model folder.
        config: of ``KrakenForCausalLM``, whose names the tensors get; see
            ``krakenlm.config.rewired``.
        dtype: what they are turned into; by default they keep theirs.

    Raises:
        KrakenError: ``directory`` is no whole model.
    """
    return dict(canonical_tensors(directory, config, dtype))


def canonical_tensors(
    directory: Path, config: ModelConfig, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``state_for`` one after the other, with its arguments and errors."""
    for name, tensor in stream_shard(directory, undivided(config), dtype):
        yield name if name == "lm_head.weight" else f"model.{name}", tensor


def rewire(
    source: Path,
    out: Path,
    *,
    wiring: str | None = None,
    num_sublayers: int | None = None,
    message_parts: int | None = None,
    late_layers: str | None = None,
) -> Rewired:
    """Write the weights of ``source`` to the folder ``out``, as a model of another wiring.

    Args:
        source: a model folder.
        out: becomes one, whole or not at all; tokenizer and generation settings come along.
        wiring: of the new model; the old one's by default.
        num_sublayers: branches of the new model; by default as many as the old one has, and one
            where the new wiring does not depend on them.
        message_parts: of the new model; the old one's by default, where the wiring has any.
        late_layers: likewise; ``all`` is all of them.

    Raises:
        KrakenError: ``source`` is no whole model, its weights do not fit the wiring or cannot be
            divided so, or ``out`` cannot be written.
    """
    stored = read_config(source)
    try:
        wanted = rewired_as(
            stored,
            wiring=wiring,
            num_sublayers=num_sublayers,
            message_parts=message_parts,
            late_layers=late_layers,
        )
    except KrakenError as error:
        raise KrakenError(f"{source}: {error}") from error
    with whole_directory(out) as folder:
        write_as(source, folder, wanted)
    return Rewired.of(stored, wanted)


def rewired_as(
    stored: ModelConfig,
    *,
    wiring: str | None,
    num_sublayers: int | None,
    message_parts: int | None,
    late_layers: str | None,
) -> ModelConfig:
    """The configuration that ``rewire`` makes of another; its arguments and errors."""
    changed = rewired(
        stored,
        wiring or stored.wiring,
        stored.num_sublayers if num_sublayers is None else num_sublayers,
        message_parts=message_parts,
        late_layers=late_layers,
    )
    if num_sublayers is None and not changed.traits.depends_on_degree:
        return laid_out(changed, 1)
    return changed


def write_as(source: Path, folder: Path, wanted: ModelConfig) -> None:
    """Write a model folder's weights, as ``wanted``, and what else it holds to an empty folder."""
    other_keys = read_object(Path(source) / "config.json")
    write_json(folder / "config.json", {**other_keys, **wanted.to_hf_dict()})
    write_tensors(canonical_tensors(source, wanted), folder)
    carry_over(source, folder)


def carry_over(source: Path, folder: Path, left_out: Collection[str] = ()) -> None:
    """Copy what a model folder holds beside its weights and their configuration.

    Args:
        source: the model folder.
        folder: gets the copies.
        left_out: names of files that are not copied.
    """
    for path in sorted(Path(source).iterdir()):
        if path.suffix in _CARRIED_OVER and path.name not in {*_LEFT_OUT, *left_out}:
            shutil.copyfile(path, folder / path.name)
