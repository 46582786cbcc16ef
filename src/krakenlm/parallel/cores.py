"""Which cores a rank computes on, and with how many threads."""

import os

import torch


def cores_here() -> list[int]:
    """The cores this process may use; numbers that stand for them where the system does not say."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on every operating system
        return list(range(os.cpu_count() or 1))


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
