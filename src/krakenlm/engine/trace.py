"""When a rank computed, when a sum was under way, when it waited: the events of one forward pass.

Times are ``time.perf_counter`` seconds, which the ranks of one Linux machine share. Recording
costs a few microseconds an event, so nothing is timed for comparison while it is recorded. GPUs
run behind the host's back and would need events of their own: only CPU ranks are recorded.
"""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from krakenlm.model.reduce import Pending, Reducer
from krakenlm.model.wiring import Block, Part, WrappedBlock
from krakenlm.transport.collective import InFlight

# Names of events, beside those of what a block computes (``wiring.Part``).
SUM, WAIT = "AllReduce", "wait"

Lane = Literal["compute", "communication"]


class Event(NamedTuple):
    """Something that took time on one rank."""

    name: str
    rank: int
    lane: Lane
    start: float
    end: float


class Recorder:
    """Collects the events of one rank, in order of their end."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.events: list[Event] = []

    def add(self, name: str, lane: Lane, start: float) -> None:
        """An event that ends now."""
        self.events.append(Event(name, self._rank, lane, start, time.perf_counter()))

    def wrap(self, index: int, block: Block) -> Block:
        """The same block, recorded; a ``BlockWrapper`` for ``Decoder.forward``."""
        return _RecordedBlock(self, index, block)


class RecordingReducer:
    """A Reducer with each sum recorded, from its begin until it is complete.

    gloo says when an AllReduce completes. Other transports complete it at the wait, or earlier
    without a word; there a sum ends where the wait for it does.
    """

    def __init__(self, recorder: Recorder, inner: Reducer) -> None:
        self._recorder = recorder
        self._inner = inner

    def begin(self, branches_KBTD: Tensor) -> Pending:
        """Start the sum and, where its completion can be heard of, note that as well."""
        start = time.perf_counter()
        pending = self._inner.begin(branches_KBTD)
        if not isinstance(pending, InFlight):
            return _RecordedPending(self._recorder, pending, start)

        def completed(_: Any) -> None:
            self._recorder.add(SUM, "communication", start)

        pending.work.get_future().add_done_callback(completed)
        return _RecordedPending(self._recorder, pending, None)


class _RecordedPending(NamedTuple):
    recorder: Recorder
    pending: Pending
    begun: float | None
    """When the sum was begun, where the wait must tell its end."""

    def wait(self) -> Tensor:
        start = time.perf_counter()
        total_1BTD = self.pending.wait()
        self.recorder.add(WAIT, "compute", start)
        if self.begun is not None:
            self.recorder.add(SUM, "communication", self.begun)
        return total_1BTD


class _RecordedBlock(WrappedBlock):
    def __init__(self, recorder: Recorder, index: int, block: Block) -> None:
        super().__init__(block)
        self._recorder = recorder
        self._index = index

    def compute(self, part: Part, function: Callable[[Tensor], Tensor], x_SBTD: Tensor) -> Tensor:
        start = time.perf_counter()
        y_KBTD = function(x_SBTD)
        self._recorder.add(f"{part} {self._index + 1}", "compute", start)
        return y_KBTD
