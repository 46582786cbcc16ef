"""A model's weights under another wiring, laid out for another number of branches."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from krakenlm.config import ModelConfig, in_branches, laid_out, rewired, with_sublayers
from krakenlm.errors import KrakenError
from krakenlm.files import whole_directory, write_json
from krakenlm.model.checkpoint import read_config, read_shard, stored_dtype
from krakenlm.model.shard import Shard, split
from krakenlm.strict import read_json

# What a model folder holds beside its weights and their configuration: tokenizer, chat template,
# how to generate.
_CARRIED_OVER = (".json", ".jinja", ".txt", ".model")
_OF_A_LAYOUT = ("heads_per_sublayer", "kv_heads_per_sublayer", "ffn_dim")
_LEFT_OUT = {"config.json", "model.safetensors.index.json"}


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
    return _state_of(directory, split(chosen, 1)[0])


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
    state = _state_of(directory, split(wanted, 1)[0], dtype)
    for path in directory.glob("model*.safetensors*"):
        path.unlink()
    _write_weights(state, directory)
    file = directory / "config.json"
    write_json(file, {**read_json(file, "save the model again"), **wanted.to_hf_dict()})


def carry_over(source: Path, folder: Path) -> None:
    """Put into a model folder what another holds beside weights: tokenizer, chat template."""
    for path in sorted(source.iterdir()):
        if path.suffix in _CARRIED_OVER and path.name not in _LEFT_OUT:
            shutil.copyfile(path, folder / path.name)


def _write_weights(state: dict[str, Tensor], directory: Path) -> None:
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


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
    return _state_of(directory, split(in_branches(config), 1)[0], dtype)


def _state_of(directory: Path, whole: Shard, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    state = read_shard(directory, whole, dtype or stored_dtype(directory))
    names = {name: name if name == "lm_head.weight" else f"model.{name}" for name in state}
    return {names[name]: tensor for name, tensor in state.items()}


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
        num_sublayers: branches of the new model; as many as the old one has by default. Wirings
            that do not depend on it are stored as one branch.
        message_parts: of the new model; the old one's by default, where the wiring has any.
        late_layers: likewise; ``all`` is all of them.

    Raises:
        KrakenError: ``source`` is no whole model, its weights do not fit the wiring or cannot be
            divided so, or ``out`` cannot be written.
    """
    stored = read_config(source)
    branches = stored.num_sublayers if num_sublayers is None else num_sublayers
    try:
        wanted = rewired(
            stored,
            wiring or stored.wiring,
            branches,
            message_parts=message_parts,
            late_layers=late_layers,
        )
    except KrakenError as error:
        raise KrakenError(f"{source}: {error}") from error
    whole = split(wanted, 1)[0]
    with whole_directory(out) as folder:
        write_json(folder / "config.json", whole.local_config.to_hf_dict())
        _write_weights(_state_of(source, whole), folder)
        carry_over(Path(source), folder)
    return Rewired(
        config=whole.local_config,
        before=f"{stored.wiring}, {stored.num_sublayers} sub-layers",
        is_another_function=_function_of(stored) != _function_of(whole.local_config),
    )
