"""One rank's part of one model under measurement: a round of it, and recorded passes.

Shape letters: see ``krakenlm.model``.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from krakenlm.bench.ranks import barrier, gathered, middle_of, now, slowest, watched
from krakenlm.config import are_hidden
from krakenlm.engine.engine import Engine
from krakenlm.engine.sampling import Sampling
from krakenlm.engine.trace import Event, Recorder, RecordingReducer
from krakenlm.model.reduce import Pending, Reducer
from krakenlm.transport.collective import Collective
from krakenlm.transport.connect import Connections, without_communication

_RECORDED_PASSES = 5

GroupName = Literal["streams", "parts"]


class Message(NamedTuple):
    """One sum that a prefill begins.

    Attributes:
        group: between ranks with other units, or between ranks that share sub-layers.
        shape: of what is sent, [1, B, T, D].
    """

    group: GroupName
    shape: tuple[int, ...]


class Sums(NamedTuple):
    """Seconds of a prefill's sums, begun and awaited with nothing in between, on the slowest rank.

    Attributes:
        communication: all of them, one after the other.
        hideable: those of them that have compute to hide behind.
        largest: the largest one.
    """

    communication: float
    hideable: float
    largest: float


class Timing(NamedTuple):
    """Seconds of one model in one round.

    Attributes:
        model: its index.
        ttft: until the first token, on rank 0.
        latency: until the last one.
        no_comm_ttft: without communication, on the slowest rank, as all that follow.
        no_comm_tpot: the same for a token after the first; 0 where there is none.
        alone: communication without compute; None where that was not asked for.
    """

    model: int
    ttft: float
    latency: float
    no_comm_ttft: float
    no_comm_tpot: float
    alone: Sums | None = None


class Runner:
    """Measures one model; all ranks call the same methods in the same order.

    Args:
        model: index among the models.
        engine: this rank's part.
        prompts: the prompts of every run.
        output_len: tokens to generate for each.
        sums_alone: whether a round times the communication alone too.
    """

    def __init__(
        self,
        model: int,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        output_len: int,
        *,
        sums_alone: bool = True,
    ) -> None:
        self.model = model
        self.engine = engine
        self.prompts = prompts
        self._output_len = output_len
        self._sums_alone = sums_alone
        self._silent = engine.with_connections(without_communication(engine.shard))
        self.messages = self._messages_of_a_prefill()
        self._hideable = set(self._hideable_messages())
        elements = max((torch.Size(m.shape).numel() for m in self.messages), default=0)
        self._buffer = torch.zeros(elements, dtype=engine.dtype, device=engine.rank.device)

    @property
    def message_bytes(self) -> int:
        """Of the largest sum of a prefill."""
        return self._buffer.nbytes

    def round(self) -> Timing:
        """Run once with communication, once without, and then the communication alone."""
        outputs = self._output_len
        ttft, latency = self._run(self.engine)
        silent_ttft, silent_latency = self._run(self._silent)
        silent_tpot = (silent_latency - silent_ttft) / max(outputs - 1, 1)
        silent_ttft, silent_tpot = slowest(self.engine.rank, silent_ttft, silent_tpot)
        alone = self._sums() if self._sums_alone else None
        return Timing(self.model, ttft, latency, silent_ttft, silent_tpot, alone)

    def record(self) -> list[Event]:
        """The events of all ranks in one prefill: of several, the one of median duration."""
        rank, connections = self.engine.rank, self.engine.connections
        recorder = Recorder(rank.index)
        if self.engine.shard.ranks > 1:
            connections = watched(connections, lambda inner: RecordingReducer(recorder, inner))
        engine = uncaptured(self.engine, connections)
        passes = []
        for _ in range(_RECORDED_PASSES):
            recorder.events = []
            barrier(rank)
            with engine.session(self.prompts, 1) as session:
                session.prefill(recorder.wrap)
            barrier(rank)  # every AllReduce is over, and so is its callback
            passes.append(recorder.events)
        seconds = [max(e.end for e in p) - min(e.start for e in p) for p in passes]
        middle = passes[middle_of(rank, seconds)]
        return [event for events in gathered(rank, middle) for event in events]

    def _run(self, engine: Engine) -> tuple[float, float]:
        """Seconds to the first and to the last token, as ``Engine.generate`` makes them."""
        rank = engine.rank
        barrier(rank)
        start = now(rank)
        sampler = engine.sampler(Sampling())
        with engine.session(self.prompts, self._output_len) as session:
            next_B = sampler(session.prefill())
            next_B.tolist()
            first = last = now(rank)
            for _ in range(self._output_len - 1):
                next_B = sampler(session.decode(next_B))
                next_B.tolist()
            if self._output_len > 1:
                last = now(rank)
        return first - start, last - start

    def _sums(self) -> Sums:
        alone = self._communicate(self.messages)
        hideable = sum(alone[i] for i in self._hideable)
        largest = max(self.messages, key=lambda m: torch.Size(m.shape).numel(), default=None)
        once = sum(self._communicate([largest])) if largest else 0.0
        return Sums(*slowest(self.engine.rank, sum(alone), hideable, once))

    def _communicate(self, messages: Sequence[Message]) -> list[float]:
        """Seconds of each sum, begun and awaited with nothing in between."""
        rank, connections = self.engine.rank, self.engine.connections
        barrier(rank)
        seconds = []
        for message in messages:
            x_1BTD = self._buffer[: torch.Size(message.shape).numel()].view(message.shape)
            start = now(rank)
            _collective(connections, message.group).begin(x_1BTD).wait()
            seconds.append(now(rank) - start)
        return seconds

    def _messages_of_a_prefill(self) -> list[Message]:
        messages: list[Message] = []
        connections = self.engine.connections
        if self.engine.shard.ranks == 1:
            return messages

        def counter(inner: Reducer) -> Reducer:
            return _Counter(messages, "streams" if inner is connections.streams else "parts", inner)

        counting = uncaptured(self.engine, watched(connections, counter))
        with counting.session(self.prompts, 1) as session:
            session.prefill()
        return messages

    def _hideable_messages(self) -> Iterator[int]:
        """Indices of the sums that something can be computed beside.

        A prompt of several chunks has another chunk to compute beside every sum but the last.
        Sums between ranks that share a sub-layer are awaited on the spot.
        """
        streams = [i for i, message in enumerate(self.messages) if message.group == "streams"]
        if self.engine.options.prefill_chunks > 1:
            yield from streams[:-1]
        else:
            yield from itertools.compress(streams, are_hidden(self.engine.config))


def uncaptured(engine: Engine, connections: Connections) -> Engine:
    """The same weights over other connections, whose prompts run operator by operator."""
    other = engine.with_connections(connections)
    other.options = replace(engine.options, graph_prefill=False)
    return other


def interleaved(runners: Sequence[Runner], rounds: int) -> Iterator[Timing]:
    """Every model once, then every model again: what drifts, drifts for all of them."""
    for _ in range(rounds):
        for runner in runners:
            yield runner.round()


class _Counter:
    """Writes down what is summed, and sums it."""

    def __init__(self, messages: list[Message], group: GroupName, inner: Reducer) -> None:
        self._messages = messages
        self._group = group
        self._inner = inner

    def begin(self, branches_KBTD: Tensor) -> Pending:
        self._messages.append(Message(self._group, (1, *branches_KBTD.shape[1:])))
        return self._inner.begin(branches_KBTD)


def _collective(connections: Connections, group: GroupName) -> Collective:
    if group == "streams":
        return connections.streams
    assert connections.parts is not None
    return connections.parts
