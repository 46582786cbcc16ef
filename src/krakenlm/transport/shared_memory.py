"""Sums between ranks of one host through shared memory: publish at begin, add up at wait.

Nothing needs to happen in between, so there is no helper thread and no copy through a socket. Each
rank owns a ring of message slots that the others read, and two counters: how many messages it has
written, and how many sums it has taken. It writes a counter behind the bytes that it stands for;
x86 makes other cores see such writes in order, and other processors are not supported.

Shape letters: see ``krakenlm.model``; R is the ranks of a group, M the slots of a ring.
"""

import errno
import mmap
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from krakenlm.errors import KrakenError
from krakenlm.transport.collective import Group, gather_texts, sum_branches

_FOLDER = "/dev/shm"  # noqa: S108  nothing in it has a name
_SLOTS = 8
"""Messages a rank may be ahead; the wirings have at most two a chunk under way."""
_FIRST_SLOT_BYTES = 1 << 16
_MOST_VIEWS = 1024
_LINE = 64  # bytes of a cache line: counters of two ranks never share one
_SPINS_BEFORE_YIELDING = 1000
_TIMEOUT_SECONDS = 600.0

_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)
_MORE_ROOM = (
    "give it more room, as `mount -o remount,size=1g /dev/shm` or docker's --shm-size=1g do"
)
_WRITABLE = "mount a tmpfs there that can be written to"

_Shape = tuple[int, ...]
_T = TypeVar("_T")


def is_supported() -> bool:
    """Whether this processor orders writes as the protocol needs, and the system has /dev/shm."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


class NoSharedMemoryError(KrakenError):
    """Memory that the ranks of a group cannot share; every one of them is told at once.

    Attributes:
        reason: what the system has against it, for people.
        advice: what would change that.
    """

    def __init__(self, code: int, size: int) -> None:
        self.reason = os.strerror(code)
        self.advice = _MORE_ROOM if code in _NO_ROOM else _WRITABLE
        super().__init__(
            f"--transport shared-memory: {_FOLDER} cannot hold {size / 1e6:.1f} MB of messages "
            f"({self.reason}): {self.advice}, or use --transport sockets"
        )


class SharedMemoryReducer:
    """Sums over ranks that share a host; a ``Collective``.

    The memory is a file without a name, so nothing is left behind however a rank ends. It grows
    when a larger message comes, on all ranks at the same one. What is begun stays good if it
    cannot.

    Raises:
        NoSharedMemoryError: on all ranks, from here, ``begin`` or ``gather``.
    """

    name = "shared-memory"

    def __init__(self, group: Group) -> None:
        self._group = group
        self._segment = _Segment(group, _FIRST_SLOT_BYTES)
        self._under_way: deque[_Published] = deque()

    def begin(self, branches_KBTD: Tensor) -> "_Published":
        """Write the sum of the local branches where the other ranks read it."""
        shape = (1, *branches_KBTD.shape[1:])
        parts = self._next_message(branches_KBTD.dtype, shape)
        sum_branches(branches_KBTD, parts[self._group.index])
        published = _Published(self, self._segment, self._segment.publish(), parts)
        self._under_way.append(published)
        return published

    def complete(self, last: "_Published") -> None:
        """Add up in the order of the begins, up to and with one sum."""
        while last.total_1BTD is None:
            self._under_way.popleft().add_up()

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x``, stacked."""
        parts = self._next_message(x.dtype, tuple(x.shape))
        parts[self._group.index].copy_(x)
        while self._under_way:
            self._under_way.popleft().add_up()
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
        elif len(self._under_way) == _SLOTS:
            self._under_way.popleft().add_up()  # or this rank would wait for itself
        return self._segment.next_message(dtype, shape)


class _Published:
    """A sum whose local part is written."""

    def __init__(
        self, reducer: SharedMemoryReducer, segment: "_Segment", number: int, parts: list[Tensor]
    ) -> None:
        self.total_1BTD: Tensor | None = None
        self._reducer = reducer
        self._segment = segment
        self._number = number
        self._parts = parts

    def wait(self) -> Tensor:
        """The sum, once every rank has published its part."""
        self._reducer.complete(self)
        assert self.total_1BTD is not None
        return self.total_1BTD

    def add_up(self) -> None:
        """Wait for all parts and add them in rank order, which gives the same bits everywhere."""
        self._segment.await_message(self._number)
        if len(self._parts) == 2:  # the common case, and one pass over memory
            self.total_1BTD = torch.add(*self._parts)
        else:
            self.total_1BTD = torch.stack(self._parts).sum(dim=0)
        self._segment.release(self._number)


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
            if len(self._views) == _MOST_VIEWS:
                self._views.clear()
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
        """Say that this rank has read a message, and all before it."""
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
    handle = _on_all(group, size, lambda: _reserve(size) if group.index == 0 else -1)
    try:
        place = "" if handle < 0 else f"/proc/{os.getpid()}/fd/{handle} {_identity(handle)}"
        path, identity = gather_texts(group, place)[0].split()
        memory = _on_all(group, size, lambda: _mapped(path, identity, size))
    finally:
        if handle >= 0:
            os.close(handle)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _on_all(group: Group, size: int, step: Callable[[], _T]) -> _T:
    """Take a step on every rank; where the system refuses it to one, all know, and none waits."""
    done: list[_T] = []
    refused = 0
    try:
        done.append(step())
    except OSError as error:
        refused = error.errno or errno.EIO
    for code in map(int, gather_texts(group, str(refused))):
        if code:
            raise NoSharedMemoryError(code, size)
    return done[0]


def _reserve(size: int) -> int:
    """A file without a name whose every byte is there: one that only has the size may have none.

    Writing to a page that the file system has no room for ends the process by SIGBUS.
    """
    handle = os.open(_FOLDER, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(handle, 0, size)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _mapped(path: str, identity: str, size: int) -> mmap.mmap:
    """The memory of a file that a process, perhaps another one, holds open."""
    handle = os.open(path, os.O_RDWR)
    try:
        if _identity(handle) != identity:  # the process of that number is another one here
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return mmap.mmap(handle, size)
    finally:
        os.close(handle)


def _identity(handle: int) -> str:
    status = os.fstat(handle)
    return f"{status.st_dev}:{status.st_ino}"
