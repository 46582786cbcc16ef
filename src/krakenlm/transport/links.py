"""Links that are not there: completion of real collectives held back until a modelled time.

The model: a rank's link carries one message after the other at its rate, and a message arrives a
latency behind its last byte. Two ranks exchange whole messages in one step; R ranks pass
2 (R - 1) / R of a message in 2 (R - 1) steps, as a ring does. A collective that really takes
longer than its model is as late as it really is.

Shape letters: see ``krakenlm.model``.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from krakenlm.errors import KrakenError
from krakenlm.model.reduce import Pending
from krakenlm.transport.collective import Collective

_SLEEP_MARGIN_SECONDS = 0.0005
_CALIBRATION_CYCLES = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between ranks, the same in both directions.

    Attributes:
        gbps: rate in 10^9 bits a second.
        latency_us: from the last bit's start to its arrival, in microseconds.
    """

    gbps: float
    latency_us: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.gbps < float("inf"):
            raise KrakenError(f"--link gbps={self.gbps:g}: needs more than 0")
        if not 0.0 <= self.latency_us < float("inf"):
            raise KrakenError(f"--link latency_us={self.latency_us:g}: needs 0 or more")

    @classmethod
    def parse(cls, text: str) -> "Link | None":
        """Read ``gbps=1,latency_us=50``; ``real`` is None, the link that is there.

        Raises:
            KrakenError: anything else.
        """
        if text == "real":
            return None
        values: dict[str, float] = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            try:
                if key not in ("gbps", "latency_us") or key in values:
                    raise ValueError
                values[key] = float(value)
            except ValueError:
                raise KrakenError(
                    f"--link {text}: write real, or for instance gbps=1,latency_us=50"
                ) from None
        if "gbps" not in values:
            raise KrakenError(f"--link {text}: gbps=RATE is missing")
        return cls(**values)

    def __str__(self) -> str:
        return f"gbps={self.gbps:g},latency_us={self.latency_us:g}"

    def seconds_on_wire(self, nbytes: int, ranks: int) -> float:
        """How long an AllReduce of ``nbytes`` keeps a rank's link busy."""
        return 2 * (ranks - 1) / ranks * nbytes * 8e-9 / self.gbps

    def seconds_behind(self, ranks: int) -> float:
        """How long after that the sum is there."""
        steps = 1 if ranks == 2 else 2 * (ranks - 1)
        return steps * self.latency_us * 1e-6


class Line(Protocol):
    """The modelled link, as it carries one message after the other."""

    def send(self, on_wire: float, behind: float) -> "Arrival":
        """Take a message that holds the wire so many seconds and arrives so many later."""
        ...


class Arrival(Protocol):
    """When a message is there."""

    def wait(self) -> None:
        """Return no earlier (on a GPU: make its stream wait)."""
        ...


class EmulatedLink:
    """A collective whose sums arrive no earlier than over the modelled link.

    Args:
        inner: really sums and gathers.
        link: the model.
        ranks: how many share the sum.
    """

    def __init__(self, inner: Collective, link: Link, ranks: int) -> None:
        self._inner = inner
        self._link = link
        self._ranks = ranks
        self._line: Line | None = None

    @property
    def name(self) -> str:
        """What really carries the messages."""
        return self._inner.name

    def begin(self, branches_KBTD: Tensor) -> "_HeldBack":
        """Start the real sum and note when the modelled one would be there."""
        pending = self._inner.begin(branches_KBTD)
        return _HeldBack(pending, self._send(branches_KBTD, branches_KBTD[0].nbytes))

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x``, as late as an AllReduce of them all."""
        arrival = self._send(x, self._ranks * x.nbytes)
        gathered = self._inner.gather(x)
        arrival.wait()
        return gathered

    def close(self) -> None:
        """Close what really sums."""
        self._inner.close()

    def _send(self, x: Tensor, nbytes: int) -> Arrival:
        if self._line is None:
            self._line = _DeviceLine() if x.is_cuda else _HostLine()
        link = self._link
        return self._line.send(
            link.seconds_on_wire(nbytes, self._ranks), link.seconds_behind(self._ranks)
        )


class _HeldBack(NamedTuple):
    inner: Pending
    arrival: Arrival

    def wait(self) -> Tensor:
        """The real sum, not before the modelled time."""
        total_1BTD = self.inner.wait()
        self.arrival.wait()
        return total_1BTD


class _HostLine:
    """By this process's clock."""

    def __init__(self) -> None:
        self._free = 0.0

    def send(self, on_wire: float, behind: float) -> "_Moment":
        begun = max(time.perf_counter(), self._free)
        self._free = begun + on_wire
        return _Moment(self._free + behind)


class _Moment(NamedTuple):
    seconds: float

    def wait(self) -> None:
        """Sleep most of the time and look at the clock for the rest, since sleep wakes late."""
        while (left := self.seconds - time.perf_counter()) > 0:
            if left > 2 * _SLEEP_MARGIN_SECONDS:
                time.sleep(left - _SLEEP_MARGIN_SECONDS)


class _DeviceLine:
    """On a GPU: one stream is the wire, another the flight behind it, and both just wait.

    The host runs ahead of the device, so its clock says nothing; and kernels that wait can be part
    of a CUDA graph. Not run yet.
    """

    def __init__(self) -> None:
        # Of high priority, or a kernel that fills the device would delay the start of a wait.
        self._wire = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
        self._flight = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
        self._cycles_a_second = _cycles_a_second()

    def send(self, on_wire: float, behind: float) -> "_OnDevice":
        self._wire.wait_stream(torch.cuda.current_stream())
        self._spend(self._wire, on_wire)
        self._flight.wait_stream(self._wire)
        self._spend(self._flight, behind)
        return _OnDevice(self._flight.record_event())

    def _spend(self, stream: torch.cuda.Stream, seconds: float) -> None:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(int(seconds * self._cycles_a_second))  # type: ignore[no-untyped-call]


class _OnDevice(NamedTuple):
    event: torch.cuda.Event

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self.event)


def _cycles_a_second() -> float:
    """How fast the clock runs that ``torch.cuda._sleep`` counts."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(2):  # the first one also wakes the device up
        start.record()
        torch.cuda._sleep(_CALIBRATION_CYCLES)  # type: ignore[no-untyped-call]
        end.record()
        end.synchronize()
    return 1000 * _CALIBRATION_CYCLES / start.elapsed_time(end)
