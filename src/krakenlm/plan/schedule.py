"""Plays the passes of several ranks: each computes one thing at a time and sends one at a time.

A rank goes through its steps in order. A sum that it has begun joins the end of its queue; it is on
the wire as soon as it is at the head of the queue of every rank that takes part, so the slowest
rank decides. While a rank computes and sends at once, either may be slower than alone.

``docs/planner.md`` describes the model; the tests play small cases that were worked out by hand.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_EPSILON = 1e-15
"""Seconds that rounding may leave of a piece of work."""


class Compute(NamedTuple):
    """Work of one rank.

    Attributes:
        seconds: with nothing on the wire meanwhile.
        name: for the time line; empty is nothing worth naming.
    """

    seconds: float
    name: str = ""


class Send(NamedTuple):
    """A collective is begun.

    Attributes:
        number: the same on every rank that takes part.
        members: those ranks.
        wire: seconds that it keeps their links busy.
        behind: seconds until the result is there, after that.
    """

    number: int
    members: tuple[int, ...]
    wire: float
    behind: float = 0.0


class Await(NamedTuple):
    """Its result is needed."""

    number: int


Step = Compute | Send | Await


class Contention(NamedTuple):
    """How much longer one takes while the other is going on."""

    compute: float = 1.0
    wire: float = 1.0


ALONE = Contention()
"""Neither is slower for the other."""


class Span(NamedTuple):
    """Something that took time on one rank.

    Attributes:
        name: of the work; of collectives and waits, their number.
        lane: compute, wire (as long as the link is busy), or wait.
        start: seconds from the beginning.
        end: likewise.
    """

    name: str
    lane: str
    start: float
    end: float


@dataclass
class Timeline:
    """What one rank did.

    Attributes:
        seconds: until its last step was done.
        exposed: of these, in which it waited.
        spans: in order of their end.
    """

    seconds: float = 0.0
    exposed: float = 0.0
    spans: list[Span] = field(default_factory=list)


class _Collective:
    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = 0
        self.wire, self.behind = send.wire, send.behind
        self.start: float | None = None
        self.is_sent = False
        self.is_there = False


class _Rank:
    def __init__(self, index: int, steps: Sequence[Step]) -> None:
        self.index = index
        self.steps = steps
        self.place = 0
        self.left: float | None = None  # of the work in hand
        self.since = 0.0  # since when it is in hand, or waited
        self.waits_for: _Collective | None = None
        self.queue: deque[_Collective] = deque()
        self.timeline = Timeline()

    @property
    def is_done(self) -> bool:
        return self.place == len(self.steps)

    @property
    def is_sending(self) -> bool:
        return bool(self.queue) and self.queue[0].start is not None


def play(programs: Sequence[Sequence[Step]], contention: Contention = ALONE) -> list[Timeline]:
    """Play one pass.

    Args:
        programs: the steps of each rank; collectives name their members by place in this list.
        contention: between computing and sending.

    Returns:
        What each rank did.
    """
    return _Player(programs, contention).run()


class _Player:
    def __init__(self, programs: Sequence[Sequence[Step]], contention: Contention) -> None:
        self._ranks = [_Rank(i, steps) for i, steps in enumerate(programs)]
        self._contention = contention
        self._collectives: dict[tuple[tuple[int, ...], int], _Collective] = {}
        self._by_number: list[dict[int, _Collective]] = [{} for _ in programs]
        self._on_wire: list[_Collective] = []
        self._in_flight: list[_Collective] = []
        self._now = 0.0

    def run(self) -> list[Timeline]:
        while True:
            self._go_on()
            if all(rank.is_done for rank in self._ranks):
                return [rank.timeline for rank in self._ranks]
            self._advance()

    def _go_on(self) -> None:
        """All that takes no time."""
        while True:
            for rank in self._ranks:
                self._step(rank)
            if not self._start_sending():
                return

    def _step(self, rank: _Rank) -> None:
        """Let a rank take steps until one takes time."""
        while not rank.is_done:
            step = rank.steps[rank.place]
            if isinstance(step, Compute):
                if rank.left is None:
                    rank.left, rank.since = step.seconds, self._now
                if rank.left > _EPSILON:
                    return
                rank.left = None
                if step.name:
                    self._note(rank, step.name, "compute", rank.since)
            elif isinstance(step, Send):
                self._begin(rank, step)
            elif not self._has_arrived(rank, step):
                return
            rank.place += 1
            rank.timeline.seconds = self._now

    def _has_arrived(self, rank: _Rank, step: Await) -> bool:
        collective = self._by_number[rank.index][step.number]
        if rank.waits_for is None:
            rank.waits_for, rank.since = collective, self._now
        if not collective.is_there:
            return False
        rank.waits_for = None
        if self._now > rank.since:
            rank.timeline.exposed += self._now - rank.since
            self._note(rank, str(step.number), "wait", rank.since)
        return True

    def _begin(self, rank: _Rank, send: Send) -> None:
        collective = self._collectives.setdefault((send.members, send.number), _Collective(send))
        collective.begun += 1
        self._by_number[rank.index][send.number] = collective
        rank.queue.append(collective)

    def _start_sending(self) -> bool:
        """Put on the wire what may be; whether that, or what was there, makes a rank go on."""
        started = False
        for rank in self._ranks:
            if not rank.queue or rank.queue[0].start is not None:
                continue
            head = rank.queue[0]
            members = head.send.members
            if head.begun == len(members) and all(
                self._ranks[m].queue and self._ranks[m].queue[0] is head for m in members
            ):
                head.start = self._now
                self._on_wire.append(head)
                started = True
        return self._finish(self._on_wire, self._in_flight) or started

    def _finish(self, on_wire: list[_Collective], in_flight: list[_Collective]) -> bool:
        """Take what has left the wire off it, and hand over what has arrived."""
        changed = False
        for collective in [c for c in on_wire if c.wire <= _EPSILON]:
            on_wire.remove(collective)
            in_flight.append(collective)
            for member in collective.send.members:
                rank = self._ranks[member]
                rank.queue.popleft()
                assert collective.start is not None
                self._note(rank, str(collective.send.number), "wire", collective.start)
            changed = True
        for collective in [c for c in in_flight if c.behind <= _EPSILON]:
            in_flight.remove(collective)
            collective.is_there = changed = True
        return changed

    def _advance(self) -> None:
        """Go on to the next moment at which something is done."""
        computing = [rank for rank in self._ranks if rank.left is not None]
        rates = [1 / self._contention.compute if r.is_sending else 1.0 for r in computing]
        wires = [1 / self._contention.wire if self._is_busy(c) else 1.0 for c in self._on_wire]
        ends = [rank.left / rate for rank, rate in zip(computing, rates, strict=True)]  # type: ignore[operator]
        ends += [c.wire / rate for c, rate in zip(self._on_wire, wires, strict=True)]
        ends += [c.behind for c in self._in_flight]
        assert ends, "ranks begin the same collectives in the same order"
        passed = min(ends)
        for rank, rate in zip(computing, rates, strict=True):
            rank.left -= passed * rate  # type: ignore[operator]
        for collective, rate in zip(self._on_wire, wires, strict=True):
            collective.wire -= passed * rate
        for collective in self._in_flight:
            collective.behind -= passed
        self._now += passed

    def _is_busy(self, collective: _Collective) -> bool:
        return any(self._ranks[member].left is not None for member in collective.send.members)

    def _note(self, rank: _Rank, name: str, lane: str, start: float) -> None:
        rank.timeline.spans.append(Span(name, lane, start, self._now))


def total(steps: Iterable[Step]) -> float:
    """Seconds of computing alone: the bound for any overlap."""
    return sum(step.seconds for step in steps if isinstance(step, Compute))
