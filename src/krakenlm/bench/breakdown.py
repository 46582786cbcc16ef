"""What one rank spends a prefill on: norms, products, attention, waiting, the head.

A stopwatch is switched from part to part, so that the parts add up to the pass. Hooks on the
modules and a watching Reducer switch it; they cost microseconds each, so the passes measured here
are not those that latencies come from. An overlapped GEMM runs while a sum is under way; attention
is what lies between its linear maps; AllReduce is the time in beginning and awaiting sums, which
is what is exposed of them. On a GPU every switch waits for the device, and overlap cannot be seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from krakenlm.bench.ranks import barrier, middle_of, now, watched
from krakenlm.bench.results import PART_NAMES
from krakenlm.bench.runner import Runner, uncaptured
from krakenlm.model.attention import Attention
from krakenlm.model.layers import BranchLinear, Norm
from krakenlm.model.packed import PackedLinear
from krakenlm.model.reduce import Pending, Reducer

_PASSES = 5

Clock = Callable[[], float]


class Stopwatch:
    """Seconds by part; entering a part stops the one around it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open = ["other"]
        self._seconds = dict.fromkeys(PART_NAMES, 0.0)
        self._since = 0.0
        self.under_way = 0
        """Sums begun and not awaited yet."""

    def start(self) -> None:
        """From now on, and from nought."""
        self._seconds = dict.fromkeys(PART_NAMES, 0.0)
        self._since = self._clock()

    def enter(self, part: str) -> None:
        """Charge what comes to ``part``."""
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        """Back to the part around it."""
        self._charge()
        self._open.pop()

    def stop(self) -> dict[str, float]:
        """Seconds by part, up to now."""
        self._charge()
        assert self._open == ["other"], "every part that was entered is left"
        return self._seconds

    def _charge(self) -> None:
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


def measure_breakdown(runner: Runner) -> dict[str, float]:
    """Seconds of one prefill by part: of several passes, the one of median duration on rank 0."""
    rank = runner.engine.rank
    stopwatch = Stopwatch(lambda: now(rank))
    engine = uncaptured(
        runner.engine, watched(runner.engine.connections, lambda inner: _Watcher(inner, stopwatch))
    )
    engine.head = _timed_head(engine.head, stopwatch)
    passes = []
    with _hooks(engine.decoder, stopwatch):
        for _ in range(_PASSES):
            with engine.session(runner.prompts, 1) as session:
                barrier(rank)
                stopwatch.start()
                session.prefill()
                passes.append(stopwatch.stop())
    return passes[middle_of(rank, [sum(parts.values()) for parts in passes])]


@contextmanager
def _hooks(decoder: nn.Module, stopwatch: Stopwatch) -> Iterator[None]:
    """Switch the stopwatch when a module is entered and left; gone afterwards."""

    def linear() -> str:
        return "overlapped_gemm" if stopwatch.under_way else "gemm"

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for module in decoder.modules():
            if isinstance(module, Norm):
                handles += _hook(module, stopwatch, lambda: "norm")
            elif isinstance(module, BranchLinear | PackedLinear):
                handles += _hook(module, stopwatch, linear)
            elif isinstance(module, Attention):
                handles += _hook(module, stopwatch, lambda: "attention")
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    module: nn.Module, stopwatch: Stopwatch, part: Callable[[], str]
) -> list[torch.utils.hooks.RemovableHandle]:
    def before(*_: Any) -> None:
        stopwatch.enter(part())

    def after(*_: Any) -> None:
        stopwatch.leave()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _timed_head(
    head: Callable[[Tensor], Tensor], stopwatch: Stopwatch
) -> Callable[[Tensor], Tensor]:
    def timed(h_BD: Tensor) -> Tensor:
        stopwatch.enter("lm_head")
        logits_BV = head(h_BD)
        stopwatch.leave()
        return logits_BV

    return timed


class _Watcher:
    def __init__(self, inner: Reducer, stopwatch: Stopwatch) -> None:
        self._inner = inner
        self._stopwatch = stopwatch

    def begin(self, branches_KBTD: Tensor) -> Pending:
        self._stopwatch.enter("allreduce")
        pending = self._inner.begin(branches_KBTD)
        self._stopwatch.leave()
        self._stopwatch.under_way += 1
        return _WatchedPending(pending, self._stopwatch)


class _WatchedPending:
    def __init__(self, inner: Pending, stopwatch: Stopwatch) -> None:
        self._inner = inner
        self._stopwatch = stopwatch

    def wait(self) -> Tensor:
        self._stopwatch.enter("allreduce")
        total_1BTD = self._inner.wait()
        self._stopwatch.leave()
        self._stopwatch.under_way -= 1
        return total_1BTD
