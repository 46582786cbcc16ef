"""A forward pass captured once and replayed: on a GPU as a CUDA graph, on a CPU as a tape."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from krakenlm.engine.tape import Tape
from krakenlm.model.reduce import Reducer

Recordable = Callable[[Reducer], Reducer]
Pass = Callable[[Recordable], Tensor]


def not_recorded(reducer: Reducer) -> Reducer:
    """For a pass that nobody captures."""
    return reducer


class Captured(Protocol):
    """A pass that can be run again on what its input tensors hold then."""

    result: Tensor
    """What capturing it gave, and where every replay writes."""

    def replay(self) -> Tensor:
        """Run it; the result is the same tensor every time."""
        ...


def capture(run: Pass, device: torch.device) -> Captured:
    """Capture a pass. All ranks capture the same passes in the same order.

    Args:
        run: the pass, over tensors that stay in place; it is handed a function that every Reducer
            it uses must go through. It runs once or several times.
        device: where it computes.
    """
    if device.type == "cuda":
        return _CudaGraph(run)
    tape = Tape()
    tape.record(run)
    return tape


class _CudaGraph:
    """NCCL's AllReduces are part of the graph, on NCCL's own stream beside compute."""

    _WARM_UPS = 3

    def __init__(self, run: Pass) -> None:
        # Libraries choose their kernels and NCCL connects on the first runs, outside the graph.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.no_grad():
            for _ in range(self._WARM_UPS):
                run(not_recorded)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self.result = run(not_recorded)
        self.replay()  # capturing computes nothing

    def replay(self) -> Tensor:
        self._graph.replay()
        return self.result
