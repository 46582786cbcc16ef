"""How fast does a run learn, and how much of the machine's arithmetic is that?

MFU (model FLOPs utilisation, PaLM, arXiv 2204.02311) is the share of a device's peak that goes
into the products that the model needs: recomputed activations do not count.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# Dense bfloat16 products a second, from the makers' data sheets. Names as CUDA reports them; all
# words of an entry must occur, and of several that do the one with most words is meant.
_PEAK_FLOPS: dict[tuple[str, ...], float] = {
    ("A100",): 312e12,
    ("A10G",): 70e12,
    ("L4",): 121e12,
    ("L40S",): 362e12,
    ("4090",): 165e12,
    ("H100",): 989e12,
    ("H100", "PCIe"): 756e12,
    ("H100", "NVL"): 835e12,
    ("GH200",): 989e12,
    ("H200",): 989e12,
    ("H200", "NVL"): 835e12,
    ("B200",): 2250e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOPs a second of a GPU by its name; None where it is not known."""
    words = set(re.split(r"[\s-]+", device_name))
    if "MIG" in words:
        return None  # a slice of a device has a share of its peak
    fitting = [names for names in _PEAK_FLOPS if words.issuperset(names)]
    return _PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def peak_flops_here(*, use_cpu: bool, bfloat16: bool) -> float | None:
    """The peak of this process's device at what the run computes in; None where unknown."""
    if use_cpu or not bfloat16:
        return None
    return peak_flops(torch.cuda.get_device_name())


class Meter:
    """Tokens a second, MFU and time left; evaluations and checkpoints do not count.

    Args:
        tokens_per_step: of all processes together.
        flops_per_token: see ``krakenlm.config.training_flops_per_token``.
        steps: of the whole run.
        peak: FLOPs a second of all devices together; None where unknown.
        clock: seconds, from anywhere.
    """

    def __init__(
        self,
        tokens_per_step: int,
        flops_per_token: float,
        steps: int,
        peak: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._steps = steps
        self._peak = peak
        self._clock = clock
        self._paused = 0.0
        self._seconds_before = 0.0
        self._origin: tuple[int, float] | None = None  # what the speed counts from
        self._last: tuple[int, float] | None = None
        self._began = 0.0
        self._warm = False

    def begin(self, step: int, seconds_before: float = 0.0) -> None:
        """Training begins behind ``step``; earlier sessions took ``seconds_before``."""
        self._began = self._now()
        self._origin, self._last, self._warm = (step, self._began), None, False
        self._seconds_before = seconds_before

    def mark(self, step: int) -> None:
        """The device has finished ``step``, and not only been given it."""
        if self._last is not None and not self._warm:
            # The first interval has compilation and first allocations in it: it counts only while
            # there is no other.
            self._origin, self._warm = self._last, True
        self._last = (step, self._now())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens meanwhile is not training."""
        begun = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begun

    @property
    def seconds(self) -> float:
        """Spent on training, earlier sessions included."""
        return self._seconds_before + (0.0 if self._origin is None else self._now() - self._began)

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes together; None before the first mark."""
        if self._origin is None or self._last is None:
            return None
        (first, since), (last, until) = self._origin, self._last
        return (last - first) * self._tokens_per_step / max(until - since, 1e-9)

    @property
    def mfu(self) -> float | None:
        """Share of the devices' peak, 0 to 1; None where that is not known."""
        speed = self.tokens_per_second
        if speed is None or self._peak is None:
            return None
        return speed * self._flops_per_token / self._peak

    def summary(self) -> dict[str, float]:
        """For the history file: what is known of speed and time, in seconds and tokens."""
        found = {"seconds": self.seconds, "flops_per_token": self._flops_per_token}
        speed = self.tokens_per_second
        if speed is not None and self._last is not None:
            left = (self._steps - self._last[0]) * self._tokens_per_step
            found |= {"tokens_per_second": speed, "seconds_left": left / speed}
        if self.mfu is not None:
            found["mfu"] = self.mfu
        return found

    def __str__(self) -> str:
        if self.tokens_per_second is None:
            return "-"
        share = "" if self.mfu is None else f", MFU {self.mfu:.0%}"
        return f"{self.tokens_per_second:,.0f} tokens/s{share}"

    def _now(self) -> float:
        """The clock without the pauses."""
        return self._clock() - self._paused
