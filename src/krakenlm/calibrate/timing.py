"""How long one call takes: on CPUs by the host's clock, on GPUs by events around a CUDA graph."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch

Call = Callable[[], object]


class Sample(Protocol):
    """A call that is timed again and again."""

    def seconds(self) -> float:
        """Of one call, over some in a row."""
        ...


def sample(call: Call, device: torch.device, *, at_most: int, warm_up: int = 1) -> Sample:
    """Time a call, as many in a row as the clock needs.

    Args:
        call: what is timed; it may do another instance of the same work each time.
        device: where it computes.
        at_most: calls in a row.
        warm_up: untimed ones before them: code is in caches when a pass comes to its next layer.
    """
    if device.type == "cuda":
        return _GraphSample(call, at_most)
    return _HostSample(call, at_most, warm_up)


class _HostSample:
    _ENOUGH_SECONDS = 0.0005

    def __init__(self, call: Call, at_most: int, warm_up: int) -> None:
        self._call = call
        self._warm_up = warm_up
        call()  # what is made at first use is no part of it
        once = min(_seconds_of(call, 1) for _ in range(3))
        self._count = min(at_most, max(1, round(self._ENOUGH_SECONDS / max(once, 1e-7))))

    def seconds(self) -> float:
        for _ in range(self._warm_up):
            self._call()
        return _seconds_of(self._call, self._count)


def _seconds_of(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


@cache
def _memory_of_graphs() -> Any:
    """One for all: nobody reads what they write, and they run one at a time."""
    return torch.cuda.graph_pool_handle()


class _GraphSample:
    """A graph of several calls: nothing is launched between them."""

    _CALLS = 32

    def __init__(self, call: Call, at_most: int) -> None:
        self._count = min(at_most, self._CALLS)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=_memory_of_graphs()):
            for _ in range(self._count):
                call()
        self._start, self._end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        self.seconds()

    def seconds(self) -> float:
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3 / self._count
