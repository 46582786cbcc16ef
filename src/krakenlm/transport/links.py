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

from torch import Tensor

from krakenlm.errors import KrakenError
from krakenlm.model.reduce import Pending
from krakenlm.transport.collective import Collective, WithoutPeers
from krakenlm.transport.gpu_hold import DeviceLine
from krakenlm.transport.gpu_share import GpuShare, of_ring

_SLEEP_MARGIN_SECONDS = 0.0005


class Carriage(NamedTuple):
    """How a link carries one sum.

    Attributes:
        on_wire: seconds that it keeps the link busy.
        behind: seconds until the sum is there, after that.
        share: what it takes of a GPU meanwhile.
    """

    on_wire: float
    behind: float
    share: GpuShare


class LinkModel(Protocol):
    """A link that is not there. Its text is what reports call it."""

    def carry(self, nbytes: int, ranks: int) -> Carriage:
        """An AllReduce of so many bytes over so many ranks."""
        ...


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

    def carry(self, nbytes: int, ranks: int) -> Carriage:
        """As a ring does, on a GPU as NCCL's."""
        share = of_ring(nbytes, ranks, self.gbps / 8)
        return Carriage(self.seconds_on_wire(nbytes, ranks), self.seconds_behind(ranks), share)

    def seconds_on_wire(self, nbytes: int, ranks: int) -> float:
        """How long an AllReduce of ``nbytes`` keeps a rank's link busy."""
        return 2 * (ranks - 1) / ranks * nbytes * 8e-9 / self.gbps

    def seconds_behind(self, ranks: int) -> float:
        """How long after that the sum is there."""
        steps = 1 if ranks == 2 else 2 * (ranks - 1)
        return steps * self.latency_us * 1e-6


class Line(Protocol):
    """The modelled link, as it carries one message after the other."""

    @property
    def takes(self) -> str:
        """What sums take from compute meanwhile, for people; empty where that is nothing."""
        ...

    def send(self, on_wire: float, behind: float, share: GpuShare, nbytes: int) -> "Arrival":
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

    def __init__(self, inner: Collective, link: LinkModel, ranks: int) -> None:
        self._inner = inner
        self._link = link
        self._ranks = ranks
        self._alone = isinstance(inner, WithoutPeers)
        self._line: Line | None = None

    @property
    def name(self) -> str:
        """What really carries the messages."""
        return self._inner.name

    @property
    def takes(self) -> str:
        """What its sums have taken from compute, for people; empty where that is nothing.

        What really sums takes its share by itself.
        """
        return self._line.takes if self._alone and self._line is not None else ""

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
            self._line = DeviceLine() if x.is_cuda else _HostLine()
        on_wire, behind, share = self._link.carry(nbytes, self._ranks)
        return self._line.send(on_wire, behind, share if self._alone else GpuShare(), nbytes)


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

    takes = ""

    def __init__(self) -> None:
        self._free = 0.0

    def send(self, on_wire: float, behind: float, share: GpuShare, nbytes: int) -> "_Moment":
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
