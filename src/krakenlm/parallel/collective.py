"""The Reducer across ranks: local branches are summed, then an asynchronous AllReduce.

Shape letters: see ``krakenlm.model``.
"""

from typing import NamedTuple

from torch import Tensor
from torch import distributed as dist


class InFlight(NamedTuple):
    """An AllReduce under way; gloo's threads or NCCL's stream carry it forward."""

    total_1BTD: Tensor
    work: dist.Work

    def wait(self) -> Tensor:
        """Block until the sum over all ranks is there (on a GPU: make its stream wait)."""
        self.work.wait()
        return self.total_1BTD


class CollectiveReducer:
    """Sums over the branches held here and over all ranks of the default process group.

    On several GPUs the same code runs over NCCL; that has not been run yet.
    """

    def begin(self, branches_KBTD: Tensor) -> InFlight:
        """Start the AllReduce on a buffer of its own, since ``branches_KBTD`` is still read."""
        if branches_KBTD.shape[0] == 1:
            total_1BTD = branches_KBTD.clone()
        else:
            total_1BTD = branches_KBTD.sum(dim=0, keepdim=True)
        work = dist.all_reduce(total_1BTD, async_op=True)
        assert work is not None
        return InFlight(total_1BTD, work)
