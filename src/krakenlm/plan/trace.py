"""One rank's pass as a program, from the engine itself on tensors without memory.

The engine's session prefills and decodes as always, on PyTorch's meta device, which knows shapes
alone; its sums go to a collective that only writes down what is sent. So the program of every
wiring, of any late layers, message parts, chunks and shared sub-layers, is what the engine does.

Parts of blocks that compute the same shapes are run once, and layers in the middle of a run are
repeated: see ``krakenlm.plan.layers``.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.sampling import Sampling
from krakenlm.model.decoder import Decoder
from krakenlm.model.shard import Shard
from krakenlm.model.wiring import Block, Part, WrappedBlock
from krakenlm.plan.layers import expanded, shortened
from krakenlm.plan.program import GroupName, Item, Program
from krakenlm.plan.recorder import Recorder, for_part, recording
from krakenlm.ranks.launch import Rank
from krakenlm.transport.collective import sum_branches
from krakenlm.transport.connect import Connections

_META = torch.device("meta")
# What a block computes does not depend on these; the rest of a configuration is in the shapes.
_BETWEEN_BLOCKS = {"wiring", "late_layers", "message_parts", "num_hidden_layers", "vocab_size"}


class Pass(NamedTuple):
    """Which pass of the engine.

    Attributes:
        batch: sequences at once.
        tokens: of each prompt; for a decode step those before the new one.
        decodes: a step of one new token a sequence, instead of the prompts.
        chunks: parts of the prompt.
        sums: also choose the next token, with the exchange between ranks that belongs to it.
    """

    batch: int
    tokens: int
    decodes: bool = False
    chunks: int = 1


def trace(shard: Shard, which: Pass, dtype: torch.dtype, *, whole: bool = False) -> Program:
    """The program of one rank.

    Args:
        shard: its part of the model.
        which: the pass.
        dtype: of weights, cache and messages.
        whole: run all layers, instead of a few that are then repeated.
    """
    return _traced(_representative.setdefault(likeness(shard), shard), which, dtype, whole)


_representative: dict[Any, Shard] = {}
"""Of ranks whose programs are equal, the first one asked for."""


def likeness(shard: Shard, *, head: bool = True) -> Any:
    """All of a shard that its program depends on, with its rows of the head or without."""
    sizes = len(shard.kv_heads), len(shard.ffn_columns), len(shard.head_rows) if head else 0
    place = shard.tensor_parallel, shard.ranks, shard.in_branches
    return shard.config, shard.count, *sizes, *place


@lru_cache(maxsize=512)
def _traced(shard: Shard, which: Pass, dtype: torch.dtype, whole: bool) -> Program:
    config = shard.config
    short = config if whole else shortened(config)
    recorder = Recorder()
    engine = _engine(dataclasses.replace(shard, config=short), which, dtype, recorder)
    blocks = _Blocks(recorder, shard, which, dtype, short.num_hidden_layers)
    prompts = [[0] * which.tokens] * which.batch
    with engine.session(prompts, 1 + which.decodes) as session:
        sampler = engine.sampler(Sampling())
        next_B = torch.zeros(which.batch, dtype=torch.int64, device=_META)
        with recording(recorder, engine.decoder):
            if which.decodes:
                logits_BV = session.decode(next_B, blocks.wrap)
            else:
                logits_BV = session.prefill(blocks.wrap)
            sampler(logits_BV)
    items = recorder.items if whole else expanded(recorder.items, config)
    return Program(tuple(items), recorder.peak_bytes)


def _engine(shard: Shard, which: Pass, dtype: torch.dtype, recorder: Recorder) -> Engine:
    with _META:
        decoder = Decoder(shard.local_config).to(dtype)
        rows = shard.head_rows
        head_VD = torch.empty(len(rows), shard.config.hidden_size, dtype=dtype)
    streams = _Tracing(recorder, "streams", len(shard.outer_ranks))
    parts = _Tracing(recorder, "parts", shard.tensor_parallel)
    connections = Connections(
        streams,
        parts if shard.tensor_parallel > 1 else None,
        _Tracing(recorder, "everyone", shard.ranks),
    )
    rank = Rank(shard.rank, shard.ranks, _META, lambda message: None)
    options = EngineOptions(
        prefill_chunks=which.chunks, tensor_parallel=shard.tensor_parallel, pack=False
    )
    engine = Engine(decoder.requires_grad_(False), head_VD, shard, rank, connections, options)
    engine.head = for_part(recorder, "lm_head", engine.head)
    return engine


class _Tracing:
    """A collective that writes down what is sent, and hands back tensors of the right shape."""

    name = "traced"

    def __init__(self, recorder: Recorder, group: GroupName, ranks: int) -> None:
        self._recorder = recorder
        self._group = group
        self._ranks = ranks

    def begin(self, branches_KBTD: Tensor) -> "_TracedSum":
        """As ``ProcessGroupReducer``: the local branches go into a message of their own."""
        if self._ranks == 1:
            return _TracedSum(self._recorder, None, branches_KBTD.sum(0, keepdim=True))
        total_1BTD = torch.empty_like(branches_KBTD[:1])
        with self._recorder.part("message"):
            sum_branches(branches_KBTD, total_1BTD)
        number = self._recorder.begin(self._group, total_1BTD.nbytes)
        return _TracedSum(self._recorder, number, total_1BTD)

    def gather(self, x: Tensor) -> Tensor:
        """As many of it as there are ranks."""
        if self._ranks > 1:
            number = self._recorder.begin(self._group, x.nbytes, gathers=True)
            self._recorder.wait(number)
        return x.new_empty((self._ranks, *x.shape))

    def close(self) -> None:
        """Nothing to give back."""


class _TracedSum(NamedTuple):
    recorder: Recorder
    number: int | None
    total_1BTD: Tensor

    def wait(self) -> Tensor:
        if self.number is not None:
            self.recorder.wait(self.number)
        return self.total_1BTD


class _Seen(NamedTuple):
    """What a part of a block was found to do."""

    items: list[Item]
    shape: torch.Size
    extra_bytes: int
    """Most memory held at once beyond what was held when it was entered."""


_seen: dict[Any, _Seen] = {}


class _Blocks:
    """Runs each part of a block once for each shape, and repeats what it did for the others."""

    def __init__(
        self, recorder: Recorder, shard: Shard, which: Pass, dtype: torch.dtype, layers: int
    ) -> None:
        config = shard.local_config
        fields = {k: v for k, v in config.to_dict().items() if k not in _BETWEEN_BLOCKS}
        self._recorder = recorder
        norms = config.norm_sets, config.norms_per_layer
        self._key = (*fields.values(), *norms, shard.tensor_parallel, which, dtype)
        self._last = layers - 1
        self._chunk = -1

    def wrap(self, index: int, block: Block) -> Block:
        """A ``BlockWrapper``."""
        if index == 0:
            self._chunk += 1  # blocks are made chunk after chunk
        return _SeenBlock(
            block, self._recorder, (*self._key, self._chunk, index == self._last), index
        )


class _SeenBlock(WrappedBlock):
    def __init__(self, block: Block, recorder: Recorder, key: tuple[Any, ...], index: int) -> None:
        super().__init__(block)
        self._recorder = recorder
        self._key = key
        self._index = index

    def compute(self, part: Part, function: Callable[[Tensor], Tensor], x_SBTD: Tensor) -> Tensor:
        recorder, key = self._recorder, (*self._key, part, x_SBTD.shape)
        recorder.made([])  # lets go of what is held no longer
        seen = _seen.get(key)
        if seen is not None:
            recorder.splice(seen.items, self._index)
            recorder.peak_bytes = max(recorder.peak_bytes, recorder.live_bytes + seen.extra_bytes)
            y_KBTD = torch.empty(seen.shape, dtype=x_SBTD.dtype, device=_META)
            return y_KBTD
        before, peak = recorder.live_bytes, recorder.peak_bytes
        recorder.peak_bytes = before
        with recorder.within(part, self._index):
            start = len(recorder.items)
            y_KBTD = function(x_SBTD)
        _seen[key] = _Seen(recorder.items[start:], y_KBTD.shape, recorder.peak_bytes - before)
        recorder.peak_bytes = max(recorder.peak_bytes, peak)
        return y_KBTD
