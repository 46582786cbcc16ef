"""Which cores a rank computes on, with how many threads, and how it keeps memory."""

import contextlib
import ctypes
import os

import torch

from krakenlm.environment import cores_here

# malloc.h of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def threads_per_rank(size: int) -> int:
    """Compute threads for each of ``size`` ranks on this machine's cores."""
    return max(1, len(cores_here()) // size)


def share_cores(local_index: int, local_size: int, threads: int | None = None) -> None:
    """Give this process its part of the machine's cores, and as many threads.

    A rank that keeps to its cores is not moved while it waits, and its helper threads do not
    disturb the others. Where ranks outnumber the cores nobody is bound.

    Args:
        local_index: which of the ranks on this machine.
        local_size: how many they are.
        threads: compute threads; by default one for each core.
    """
    cores = cores_here()
    each = len(cores) // local_size
    if each and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[local_index * each : (local_index + 1) * each])
    torch.set_num_threads(threads or max(1, each))


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of handing it back and asking for it again.

    A prefill allocates the same activations in every layer, and so does a training step. glibc maps
    large ones afresh each time, and the kernel fills every page with zeros; on a virtual machine
    that takes a tenth of the time. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
