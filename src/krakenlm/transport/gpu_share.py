"""What an AllReduce takes of a GPU that computes at the same time.

A ring's channels are thread blocks that keep a multiprocessor each to themselves (NVIDIA/nccl issue
689). HGX A100 has 24 of them (NVIDIA/nccl-tests issue 100), with 220 GB/s by the planner's profile,
and so has an H100 (NVIDIA's developer forum, 337991); slower links get fewer. A channel gets 16 KiB
of a message or more (32 KiB of traffic, ``scheduleCollTasksToPlan`` in src/enqueue.cc of recent
versions).
"""

import math
from typing import NamedTuple

_CHANNEL_GB_PER_SECOND = 9.2
_CHANNEL_BYTES = 16 << 10
_CHANNELS = 24

_ONE_SHOT_BLOCKS, _ONE_SHOT_BYTES = 36, 8 << 10
"""Of vLLM's kernel (custom_all_reduce.cuh): block_limit, and 512 threads of 16 bytes."""
_MULTIMEM_BLOCKS, _MULTIMEM_BYTES = 8, 16 << 10
"""Of PyTorch's (CUDASymmetricMemoryOps.cu): max_num_blocks, and 1024 threads of 16 bytes."""


class GpuShare(NamedTuple):
    """Of one sum, on one of the GPUs.

    Attributes:
        multiprocessors: that nothing else can use meanwhile.
        copied_bytes: as many are read from memory and as many written to it.
    """

    multiprocessors: int = 0
    copied_bytes: int = 0


def of_ring(nbytes: int, ranks: int, gb_per_second: float) -> GpuShare:
    """Of NCCL's ring over a link of such a rate.

    Each of the 2 (R - 1) steps moves a part of n / R bytes. In the first half it is read, and so is
    what it is added to, and the neighbour's sum is written; in the second half one is read, and
    two are written.
    """
    channels = min(_CHANNELS, math.ceil(gb_per_second / _CHANNEL_GB_PER_SECOND))
    copied = 3 * (ranks - 1) / ranks * nbytes
    return GpuShare(_blocks(nbytes, channels, _CHANNEL_BYTES), math.ceil(copied))


def of_one_shot(nbytes: int, ranks: int) -> GpuShare:
    """Of a kernel that reads every rank's message: this memory is read R times, written once."""
    return GpuShare(
        _blocks(nbytes, _ONE_SHOT_BLOCKS, _ONE_SHOT_BYTES), math.ceil((ranks + 1) / 2 * nbytes)
    )


def of_multimem(nbytes: int, ranks: int) -> GpuShare:
    """Of a kernel for which the switch adds up: this memory is read once and written once."""
    part = math.ceil(nbytes / ranks)
    return GpuShare(_blocks(part, _MULTIMEM_BLOCKS, _MULTIMEM_BYTES), nbytes)


def _blocks(nbytes: int, most: int, of_each: int) -> int:
    return min(most, max(1, math.ceil(nbytes / of_each)))
