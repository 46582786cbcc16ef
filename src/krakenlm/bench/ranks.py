"""What the ranks of a measurement need from each other, and from the clock."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from krakenlm.model.reduce import Pending, Reducer
from krakenlm.ranks.agreement import told_by_all
from krakenlm.ranks.devices import DTYPES, has_bfloat16
from krakenlm.ranks.launch import Rank
from krakenlm.transport.collective import Collective
from krakenlm.transport.connect import Connections

_T = TypeVar("_T")


def dtype_on(device: torch.device, name: str) -> torch.dtype:
    """The named dtype; ``auto`` is bfloat16 where the device multiplies it itself."""
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def now(rank: Rank) -> float:
    """Seconds, once everything this rank's device was given is done."""
    if rank.device.type == "cuda":
        torch.cuda.synchronize(rank.device)
    return time.perf_counter()


def barrier(rank: Rank) -> None:
    """Wait for all ranks."""
    if rank.size > 1:
        dist.barrier()


def slowest(rank: Rank, *seconds: float) -> list[float]:
    """Of each number, the largest that any rank has."""
    longest = torch.tensor(seconds, dtype=torch.float64, device=rank.device)
    if rank.size > 1:
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return longest.tolist()


def gathered(rank: Rank, value: _T) -> list[_T]:
    """Every rank's value, in rank order, on every rank."""
    return told_by_all(value) if rank.size > 1 else [value]


def middle_of(rank: Rank, seconds: list[float]) -> int:
    """Index of the median of rank 0's numbers, the same index on every rank."""
    agreed = gathered(rank, seconds)[0]
    return sorted(range(len(agreed)), key=agreed.__getitem__)[len(agreed) // 2]


def peak_rss_bytes() -> int:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class _Observed:
    """A collective whose sums go through another Reducer, which watches them."""

    def __init__(self, inner: Collective, watcher: Reducer) -> None:
        self._inner = inner
        self._watcher = watcher

    @property
    def name(self) -> str:
        """Of what really sums."""
        return self._inner.name

    def begin(self, branches_KBTD: Tensor) -> Pending:
        """Through the watcher."""
        return self._watcher.begin(branches_KBTD)

    def gather(self, x: Tensor) -> Tensor:
        """As it was."""
        return self._inner.gather(x)

    def close(self) -> None:
        """Close what really sums."""
        self._inner.close()


def watched(connections: Connections, watch: Callable[[Reducer], Reducer]) -> Connections:
    """The same connections, with the sums of a pass seen by what ``watch`` makes of each."""
    streams, parts = connections.streams, connections.parts
    return connections._replace(
        streams=_Observed(streams, watch(streams)), parts=parts and _Observed(parts, watch(parts))
    )


def gpu_name(device: torch.device) -> str:
    """The accelerator's name; empty on a CPU."""
    if device.type != "cuda":
        return ""
    with contextlib.suppress(RuntimeError):
        return torch.cuda.get_device_name(device)
    return ""
