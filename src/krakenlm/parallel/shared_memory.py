"""Sums between ranks of one host through shared memory: publish at begin, add up at wait.

Nothing needs to happen in between, so there is no helper thread and no copy through a socket. Each
rank owns a ring of message slots that the others read, and two counters: how many messages it has
written, and how many sums it has taken. It writes a counter behind the bytes that it stands for;
x86 makes other cores see such writes in order, and other processors are not supported.

Shape letters: see ``krakenlm.model``; R is the ranks of a group, M the slots of a ring.
"""

import mmap
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from krakenlm.parallel.collective import Group, ProcessGroupReducer, sum_branches

_SLOTS = 8
"""Messages a rank may be ahead; the wirings have at most two a chunk under way."""
_FIRST_SLOT_BYTES = 1 << 16
_LINE = 64  # bytes of a cache line: counters of two ranks never share one
_SPINS_BEFORE_YIELDING = 1000
_TIMEOUT_SECONDS = 600.0

_Shape = tuple[int, ...]


def is_supported() -> bool:
    """Whether this processor orders writes as the protocol needs, and memory can be shared."""
    return platform.machine() in ("x86_64", "AMD64") and Path("/dev/shm").is_dir()  # noqa: S108


class SharedMemoryReducer:
    """Sums over ranks that share a host; a ``Collective``.

    The memory is a file that has no name any more once all ranks hold it, so nothing is left
    behind however a rank ends. It grows when a larger message comes, on all ranks at the same one.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._segment = _Segment(group, _FIRST_SLOT_BYTES)

    def begin(self, branches_KBTD: Tensor) -> "_Published":
        """Write the sum of the local branches where the other ranks read it."""
        shape = (1, *branches_KBTD.shape[1:])
        parts = self._next_message(branches_KBTD.dtype, shape)
        sum_branches(branches_KBTD, parts[self._group.index])
        return _Published(self._segment, self._segment.publish(), parts)

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x``, stacked."""
        parts = self._next_message(x.dtype, tuple(x.shape))
        parts[self._group.index].copy_(x)
        number = self._segment.publish()
        self._segment.await_message(number)
        gathered = torch.stack(parts)
        self._segment.release(number)
        return gathered

    def close(self) -> None:
        """Let the memory go; it is freed when the last tensor that looks into it is."""
        del self._segment

    def _next_message(self, dtype: torch.dtype, shape: _Shape) -> list[Tensor]:
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if nbytes > self._segment.slot_bytes:
            # What is under way keeps the old memory alive. Sizes are the same everywhere.
            self._segment = _Segment(self._group, 1 << (nbytes - 1).bit_length())
        return self._segment.next_message(dtype, shape)


class _Published(NamedTuple):
    segment: "_Segment"
    number: int
    parts: list[Tensor]

    def wait(self) -> Tensor:
        """Wait until every rank has published, then add up, in rank order on every rank."""
        self.segment.await_message(self.number)
        if len(self.parts) == 2:  # the common case, and one pass over memory
            total_1BTD = torch.add(*self.parts)
        else:
            total_1BTD = torch.stack(self.parts).sum(dim=0)
        self.segment.release(self.number)
        return total_1BTD


class _Segment:
    """The shared memory of one slot size: two counters a rank, then [M slots, R ranks, bytes]."""

    def __init__(self, group: Group, slot_bytes: int) -> None:
        self.slot_bytes = max(slot_bytes, _LINE)
        self._index, self._ranks = group.index, group.size
        counters = 2 * self._ranks * _LINE
        memory = _shared(group, counters + _SLOTS * self._ranks * self.slot_bytes)
        self._counters: memoryview = memory.numpy()[:counters].data.cast("q")
        self._messages_MRY = memory[counters:].view(_SLOTS, self._ranks, self.slot_bytes)
        # Indexing tensors takes longer than a small message, so each slot's views are kept.
        self._views: dict[tuple[int, torch.dtype, _Shape], list[Tensor]] = {}
        self._number = 0
        step = _LINE // 8
        self._published = [rank * step for rank in range(self._ranks)]
        self._released = [(self._ranks + rank) * step for rank in range(self._ranks)]

    def next_message(self, dtype: torch.dtype, shape: _Shape) -> list[Tensor]:
        """Every rank's part of the next message, once all have read what was there before."""
        self._await(self._released, self._number + 1 - _SLOTS)
        place = (self._number + 1) % _SLOTS
        if (place, dtype, shape) not in self._views:
            nbytes = torch.Size(shape).numel() * dtype.itemsize
            self._views[place, dtype, shape] = [
                part_Y[:nbytes].view(dtype).view(shape) for part_Y in self._messages_MRY[place]
            ]
        return self._views[place, dtype, shape]

    def publish(self) -> int:
        """Say that this rank's part is written; the message's number."""
        self._number += 1
        self._counters[self._published[self._index]] = self._number
        return self._number

    def await_message(self, number: int) -> None:
        """Wait until every rank has written its part."""
        self._await(self._published, number)

    def release(self, number: int) -> None:
        """Say that this rank has read a message; sums are awaited in the order they began."""
        self._counters[self._released[self._index]] = number

    def _await(self, places: list[int], number: int) -> None:
        """Look until every counter has come that far; let others run when it takes long."""
        counters = self._counters
        for place in places:
            spins, deadline = 0, 0.0
            while counters[place] < number:
                spins += 1
                if spins > _SPINS_BEFORE_YIELDING:
                    os.sched_yield()
                    deadline = deadline or time.monotonic() + _TIMEOUT_SECONDS
                    if time.monotonic() > deadline:
                        raise RuntimeError("a rank has not answered for 10 minutes")


def _shared(group: Group, size: int) -> Tensor:
    """``size`` zero bytes that all ranks of the group see."""
    path = b""
    if group.index == 0:
        handle, name = tempfile.mkstemp(prefix="krakenlm-", dir="/dev/shm")
        os.ftruncate(handle, size)
        os.close(handle)
        path = name.encode()
    encoded = torch.zeros(256, dtype=torch.uint8)
    encoded[: len(path)] = torch.tensor(list(path), dtype=torch.uint8)
    exchange = ProcessGroupReducer(group)
    name = bytes(exchange.gather(encoded)[0].tolist()).rstrip(b"\0").decode()
    handle = os.open(name, os.O_RDWR)
    try:
        memory = mmap.mmap(handle, size)
    finally:
        os.close(handle)
    dist.barrier(group.handle)
    if group.index == 0:
        Path(name).unlink(missing_ok=True)
    return torch.frombuffer(memory, dtype=torch.uint8)
