"""One rank's part of a model: which part, its weights, and the ranks that it sums with.

Shape letters: see ``krakenlm.model``; V is this rank's slice of the vocabulary.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm.config import ModelConfig, with_sublayers
from krakenlm.engine.capture import Recordable, not_recorded
from krakenlm.engine.options import EngineOptions
from krakenlm.errors import trying
from krakenlm.model.attention import SdpaCore
from krakenlm.model.checkpoint import fingerprint, read_config, read_shard
from krakenlm.model.decoder import BlockWrapper, Decoder
from krakenlm.model.packed import PackedMatrix, can_pack, pack
from krakenlm.model.shard import Shard, split, units_of
from krakenlm.model.wiring import Block
from krakenlm.ranks.agreement import require_same
from krakenlm.ranks.cores import keep_freed_memory
from krakenlm.ranks.launch import Rank, under_torchrun
from krakenlm.ranks.placement import balance, measure_unit
from krakenlm.transport.collective import Group, ProcessGroupReducer
from krakenlm.transport.connect import Connections, connect, emulated_peers
from krakenlm.transport.tensor_parallel import PartialBlock

_TYPICAL_PROMPT = 512
"""Tokens with which ranks are timed for ``placement="auto"``."""

# What a rank tries, and what to do where it fails for reasons that are not ours.
_READING = (
    "reading the weights",
    "check that the model's folder can be read and that there is memory for the weights",
)

_SAME_MODEL = "copy one model to all machines"


class RankModel:
    """One rank's part of a model, and the sums that make it whole with the others'.

    Every rank holds the embeddings and the final norm, and of the head the rows of its slice of
    the vocabulary. Each ends a pass with the same hidden states.

    Args:
        decoder: this rank's part, evaluated only.
        head_VD: its rows of the output head.
        shard: which part that is.
        rank: this rank.
        connections: its sums over ranks.
        options: how it runs.
    """

    def __init__(
        self,
        decoder: Decoder,
        head_VD: Tensor,
        shard: Shard,
        rank: Rank,
        connections: Connections,
        options: EngineOptions,
    ) -> None:
        self.decoder = decoder.eval()
        self.shard = shard
        self.rank = rank
        self.connections = connections
        self.options = options
        self.dtype = head_VD.dtype
        self.head = _head(head_VD, options)

    @classmethod
    def load(
        cls,
        directory: Path,
        rank: Rank,
        dtype: torch.dtype,
        options: EngineOptions | None = None,
        *,
        config: ModelConfig | None = None,
    ) -> Self:
        """Read this rank's slices of a checkpoint.

        Args:
            directory: the checkpoint folder.
            rank: this rank.
            dtype: what the weights are turned into.
            options: how the model is spread out and run.
            config: the same weights under another wiring (see ``krakenlm.config.rewired``); None is
                the checkpoint's own.

        Raises:
            KrakenError: see ``krakenlm.model.checkpoint`` and ``krakenlm.model.shard``.
        """
        options = options or EngineOptions()
        shard = place(config or read_config(directory), rank, dtype, options)
        rank.activity("reading the weights")
        with trying(*_READING):
            if rank.size > 1 and under_torchrun():  # else all read the same folder
                require_same(f"the model in {directory}", fingerprint(directory), _SAME_MODEL)
            state = read_shard(directory, shard, dtype)
        head_VD = state.pop("lm_head.weight", None)
        if head_VD is None:
            rows = shard.head_rows
            head_VD = state["embed_tokens.weight"][rows.start : rows.stop]
        with torch.device("meta"):
            decoder = Decoder(shard.local_config)
        decoder.load_state_dict(state, assign=True)
        del state
        return cls._of(decoder.to(rank.device), head_VD.to(rank.device), shard, rank, options)

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        rank: Rank,
        dtype: torch.dtype,
        options: EngineOptions | None = None,
    ) -> Self:
        """Random weights of a configuration's shape, for timing."""
        options = options or EngineOptions()
        shard = place(config, rank, dtype, options)
        with torch.device("meta"):
            decoder = Decoder(shard.local_config)
        # Not by ``to_empty``, which imports PyTorch's compiler.
        empty = {
            name: torch.empty(tensor.shape, dtype=dtype, device=rank.device)
            for name, tensor in decoder.state_dict().items()
        }
        decoder.load_state_dict(empty, assign=True)
        decoder.initialise()
        rows = shard.head_rows
        head_VD = decoder.embed_tokens.weight.detach()[rows.start : rows.stop]
        return cls._of(decoder, head_VD, shard, rank, options)

    @classmethod
    def _of(
        cls, decoder: Decoder, head_VD: Tensor, shard: Shard, rank: Rank, options: EngineOptions
    ) -> Self:
        if options.emulated_ranks is None:
            connections = connect(rank, shard, options.transport)
        else:
            connections = emulated_peers(shard, rank.device)
        if options.link is not None and shard.ranks > 1:
            connections = connections.over(options.link, shard)
        model = cls(decoder.requires_grad_(False), head_VD, shard, rank, connections, options)
        if options.pack:
            pack(model.decoder)
        if rank.size > 1:  # a process of our own; behind loading, which frees what it should
            keep_freed_memory()
        return model

    def with_connections(self, connections: Connections) -> Self:
        """The same weights, summed over other connections."""
        other = copy(self)
        other.connections = connections
        return other

    @property
    def config(self) -> ModelConfig:
        """Of the whole model."""
        return self.shard.config

    @torch.no_grad()
    def logits(self, ids_BT: Tensor) -> Tensor:
        """Logits of every position over the whole vocabulary, without cache or fast paths."""
        ids_BT = ids_BT.to(self.rank.device)
        positions_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        h_BTD = self.decoder(
            self.decoder.embed_tokens(ids_BT),
            positions_1T,
            SdpaCore(),
            self.connections.streams,
            self.wrapper(None),
        )
        return self._whole_vocabulary(self.head(h_BTD))

    def _whole_vocabulary(self, slice_BTV: Tensor) -> Tensor:
        """Put the ranks' slices side by side; for tests and tools, not for decoding."""
        shard = self.shard
        widths = [len(replace(shard, rank=rank).head_rows) for rank in range(shard.ranks)]
        padded_BTV = F.pad(slice_BTV, (0, max(widths) - widths[shard.rank]))
        gathered_RBTV = self.connections.everyone.gather(padded_BTV)
        return torch.cat([part[..., :w] for part, w in zip(gathered_RBTV, widths, strict=True)], -1)

    def wrapper(
        self, wrap: BlockWrapper | None, recordable: Recordable = not_recorded
    ) -> BlockWrapper | None:
        """What stands around each block: the sum over parts, and around that ``wrap``."""
        parts = self.connections.parts
        if parts is None:
            return wrap
        reducer = recordable(parts)

        def both(index: int, block: Block) -> Block:
            whole = PartialBlock(block, reducer)
            return whole if wrap is None else wrap(index, whole)

        return both


def place(config: ModelConfig, rank: Rank, dtype: torch.dtype, options: EngineOptions) -> Shard:
    """Which part of a model this rank holds; ``auto`` times every rank first.

    Raises:
        KrakenError: see ``krakenlm.model.shard.split`` and ``krakenlm.config.with_sublayers``.
    """
    config = with_sublayers(config, options.sublayers)
    t = options.tensor_parallel
    placement = options.placement
    if placement == "auto":
        placement = _measured_placement(config, rank, dtype, t) if rank.size > t else None
    ranks = options.emulated_ranks or rank.size
    return split(config, ranks, placement=placement, tensor_parallel=t)[rank.index]


def _measured_placement(
    config: ModelConfig, rank: Rank, dtype: torch.dtype, tensor_parallel: int
) -> tuple[int, ...]:
    mine = split(config, rank.size, tensor_parallel=tensor_parallel)[rank.index]
    tokens = min(_TYPICAL_PROMPT, config.max_position_embeddings)
    seconds = measure_unit(mine, rank.device, dtype, tokens=tokens)
    everyone = ProcessGroupReducer(Group(rank.index, rank.size))
    seconds_R = everyone.gather(torch.tensor(seconds, dtype=torch.float64, device=rank.device))
    # A group is as fast as the slowest of its ranks.
    of_groups = seconds_R.view(-1, tensor_parallel).amax(1)
    return balance(units_of(mine.config), of_groups.tolist())


def _head(head_VD: Tensor, options: EngineOptions) -> Callable[[Tensor], Tensor]:
    if options.pack and len(head_VD) and can_pack(head_VD):
        return PackedMatrix(head_VD)
    return lambda h_BTD: F.linear(h_BTD, head_VD)
