"""The inference engine: one rank's part of a model, prefill, and decoding token by token.

Shape letters: see ``krakenlm.model``; V is this rank's slice of the vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm.config import ModelConfig
from krakenlm.engine.capture import Recordable, not_recorded
from krakenlm.engine.requests import check_request, refuse_not_finite
from krakenlm.engine.sampling import Sampler, Sampling
from krakenlm.engine.session import Session, whole_buckets
from krakenlm.errors import KrakenError, trying
from krakenlm.model.attention import SdpaCore
from krakenlm.model.checkpoint import read_config, read_shard
from krakenlm.model.decoder import BlockWrapper, Decoder
from krakenlm.model.packed import PackedMatrix, can_pack, pack
from krakenlm.model.shard import Shard, split, units_of
from krakenlm.model.wiring import Block
from krakenlm.ranks.cores import keep_freed_memory
from krakenlm.ranks.failures import REPORT
from krakenlm.ranks.launch import Rank
from krakenlm.ranks.placement import Placement, balance, measure_unit
from krakenlm.transport.collective import Group, ProcessGroupReducer
from krakenlm.transport.connect import (
    TRANSPORTS,
    Connections,
    Transport,
    connect,
    without_communication,
)
from krakenlm.transport.links import Link
from krakenlm.transport.tensor_parallel import PartialBlock

Ended = Callable[[list[int]], Sequence[bool]]
"""Given one step's tokens, which sequences have ended for reasons of their text."""

_TYPICAL_PROMPT = 512
"""Tokens with which ranks are timed for ``placement="auto"``."""

# What ranks try, and what to do where it fails for reasons that are not ours.
_READING = (
    "reading the weights",
    "check that the model's folder can be read and that there is memory for the weights",
)
_LESS = "if memory is short, give fewer or shorter prompts or more --devices; else " + REPORT


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is spread out and run; the defaults suit the machine at hand.

    Attributes:
        placement: units of each group of ranks, ``auto`` to measure the ranks and balance them,
            or None for as even as possible (see ``krakenlm.model.shard.split``).
        tensor_parallel: ranks that share each Kraken sub-layer.
        transport: what carries messages (see ``krakenlm.transport.connect``).
        link: emulate this link; None uses what is there.
        emulated_ranks: run one part of so many alone, as if the ranks with the others were there
            and never late; the numbers are wrong, the times those of the emulated link.
        prefill_chunks: parts of a prompt that hide their AllReduces behind one another.
        capture: replay decode passes instead of running them anew.
        pack: linear maps in oneDNN's layout, on CPUs that have it.
    """

    placement: Placement = None
    tensor_parallel: int = 1
    transport: Transport = "auto"
    link: Link | None = None
    emulated_ranks: int | None = None
    prefill_chunks: int = 1
    capture: bool = True
    pack: bool = True

    def __post_init__(self) -> None:
        if self.prefill_chunks < 1:
            raise KrakenError(f"--prefill-chunks {self.prefill_chunks}: needs 1 or more")
        if self.transport not in TRANSPORTS:
            raise KrakenError(
                f"--transport {self.transport}: choose one of {', '.join(TRANSPORTS)}"
            )
        if self.emulated_ranks is not None:
            if self.link is None:
                raise KrakenError("--emulate-peers: needs a link to them: add --link gbps=RATE")
            if self.transport != "auto":
                raise KrakenError(
                    f"--transport {self.transport}: with --emulate-peers nothing is carried"
                )
            if self.placement == "auto":
                raise KrakenError("--emulate-peers: nobody to measure for --placement auto")


class Engine:
    """Runs one rank's part of a model; all ranks call the same methods in the same order.

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
        self._idle: Session | None = None

    @classmethod
    def load(
        cls, directory: Path, rank: Rank, dtype: torch.dtype, options: EngineOptions | None = None
    ) -> "Engine":
        """Read this rank's slices of a checkpoint.

        Raises:
            KrakenError: see ``krakenlm.model.checkpoint`` and ``krakenlm.model.shard``.
        """
        options = options or EngineOptions()
        config = read_config(directory)
        shard = place(config, rank, dtype, options)
        with trying(*_READING):
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
    ) -> "Engine":
        """Random weights of a configuration's shape, for timing."""
        options = options or EngineOptions()
        shard = place(config, rank, dtype, options)
        with torch.device("meta"):
            decoder = Decoder(shard.local_config)
        decoder = decoder.to(dtype).to_empty(device=rank.device)
        decoder.initialise()
        rows = shard.head_rows
        head_VD = decoder.embed_tokens.weight.detach()[rows.start : rows.stop]
        return cls._of(decoder, head_VD, shard, rank, options)

    @classmethod
    def _of(
        cls, decoder: Decoder, head_VD: Tensor, shard: Shard, rank: Rank, options: EngineOptions
    ) -> "Engine":
        if options.emulated_ranks is None:
            connections = connect(rank, shard, options.transport)
        else:
            connections = without_communication(shard, "emulated-peers")
        if options.link is not None and shard.ranks > 1:
            connections = connections.over(options.link, shard)
        engine = cls(decoder.requires_grad_(False), head_VD, shard, rank, connections, options)
        if options.pack:
            pack(engine.decoder)
        if rank.size > 1:  # a process of our own; behind loading, which frees what it should
            keep_freed_memory()
        return engine

    def with_connections(self, connections: Connections) -> "Engine":
        """The same weights, summed over other connections."""
        other = object.__new__(Engine)
        other.__dict__ |= {**self.__dict__, "connections": connections, "_idle": None}
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

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        eos_token_ids: Collection[int] = (),
        ended: Ended | None = None,
        first_sequence: int = 0,
    ) -> Iterator[list[int]]:
        """Yield the next token of every sequence, step by step, on every rank.

        Ends after ``max_new_tokens`` or when each sequence has met an end token; a sequence that
        is done repeats its last token.

        Args:
            prompts: token ids, of any lengths.
            max_new_tokens: at most so many steps.
            sampling: how tokens are chosen; greedy by default.
            eos_token_ids: tokens that end an answer; they are yielded too.
            ended: rank 0 asks it about each step's tokens, and the others hear what it says; all
                ranks give one, or none does.
            first_sequence: see ``Sampler``.

        Raises:
            KrakenError: prompts that cannot be answered, weights that give no finite logits.
        """
        check_request(self.config, prompts, max_new_tokens)
        sampler = self.sampler(sampling or Sampling(), first_sequence)
        with self.session(prompts, max_new_tokens) as session:
            done = [False] * len(prompts)
            with trying("running the prompts", _LESS):
                logits_BV = session.prefill()
                refuse_not_finite(logits_BV)
                next_B = sampler(logits_BV)
                last = next_B.tolist()
            for _ in range(max_new_tokens - 1):
                yield last
                done = [e or token in eos_token_ids for e, token in zip(done, last, strict=True)]
                if ended is not None:
                    told = self._told_by_rank_0(ended, last)
                    done = [e or t for e, t in zip(done, told, strict=True)]
                if all(done):
                    return
                with trying("generating tokens", _LESS):
                    next_B = sampler(session.decode(next_B))
                    new = next_B.tolist()
                last = [o if e else n for e, o, n in zip(done, last, new, strict=True)]
            yield last

    def _told_by_rank_0(self, ended: Ended, tokens: list[int]) -> list[bool]:
        says = list(ended(tokens)) if self.rank.index == 0 else [False] * len(tokens)
        flags_B = torch.tensor(says, dtype=torch.uint8, device=self.rank.device)
        return self.connections.everyone.gather(flags_B)[0].bool().tolist()

    def sampler(self, sampling: Sampling, first_sequence: int = 0) -> Sampler:
        """Chooses tokens from the logits of this rank's slice, with the other ranks."""
        return Sampler(
            sampling,
            vocab_size=self.config.vocab_size,
            first_token=self.shard.head_rows.start,
            gather=self.connections.everyone.gather,
            first_sequence=first_sequence,
        )

    def session(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Session:
        """Room for one batch of prompts and their answers; use it in a ``with`` statement.

        The last one's memory and captured passes are used again where they fit.
        """
        capacity = whole_buckets(max(map(len, prompts)) + max_new_tokens)
        session, self._idle = self._idle, None
        if session is None or (session.cache.batch, session.cache.capacity) != (
            len(prompts),
            capacity,
        ):
            del session
            session = Session(self, len(prompts), capacity)
        session.begin(prompts)
        return session

    def keep_for_next(self, session: Session) -> None:
        """Let the next batch of this size use a session's memory and captured passes."""
        self._idle = session

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
        KrakenError: see ``krakenlm.model.shard.split``.
    """
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
    return balance(units_of(config), of_groups.tolist())


def _head(head_VD: Tensor, options: EngineOptions) -> Callable[[Tensor], Tensor]:
    if options.pack and len(head_VD) and can_pack(head_VD):
        return PackedMatrix(head_VD)
    return lambda h_BTD: F.linear(h_BTD, head_VD)
