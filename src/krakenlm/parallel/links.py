"""Links that are not there: completion of real collectives held back until a modelled time.

The model: a rank's link carries one message after the other at its rate, and a message arrives a
latency behind its last byte. Two ranks exchange whole messages in one step; R ranks pass
2 (R - 1) / R of a message in 2 (R - 1) steps, as a ring does. A collective that really takes
longer than its model is as late as it really is.

Shape letters: see ``krakenlm.model``.
"""

import time
from dataclasses import dataclass

from torch import Tensor

from krakenlm.errors import KrakenError
from krakenlm.model.reduce import Pending
from krakenlm.parallel.collective import Collective

_SLEEP_MARGIN_SECONDS = 0.0005


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
        self._free = 0.0

    def begin(self, branches_KBTD: Tensor) -> "_HeldBack":
        """Start the real sum and note when the modelled one would be there."""
        nbytes = branches_KBTD[0].numel() * branches_KBTD.element_size()
        return _HeldBack(self._inner.begin(branches_KBTD), self._arrival(nbytes))

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x``, as late as an AllReduce of them all."""
        arrival = self._arrival(self._ranks * x.nbytes)
        gathered = self._inner.gather(x)
        _wait_until(arrival)
        return gathered

    def close(self) -> None:
        """Close what really sums."""
        self._inner.close()

    def _arrival(self, nbytes: int) -> float:
        begun = max(time.perf_counter(), self._free)
        self._free = begun + self._link.seconds_on_wire(nbytes, self._ranks)
        return self._free + self._link.seconds_behind(self._ranks)


class _HeldBack:
    def __init__(self, inner: Pending, arrival: float) -> None:
        self._inner = inner
        self._arrival = arrival

    def wait(self) -> Tensor:
        """The real sum, not before the modelled time."""
        total_1BTD = self._inner.wait()
        _wait_until(self._arrival)
        return total_1BTD


def _wait_until(moment: float) -> None:
    """Sleep most of the time and look at the clock for the rest, since sleep wakes late."""
    while (left := moment - time.perf_counter()) > 0:
        if left > 2 * _SLEEP_MARGIN_SECONDS:
            time.sleep(left - _SLEEP_MARGIN_SECONDS)
