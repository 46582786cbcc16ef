"""Sums between hosts over TCP that the kernel carries: send at begin, receive and add at wait.

A message goes into the kernel's send buffer at once, travels while the rank computes, and lies in
the receive buffer of the other side until it is wanted; no thread of this process takes part.
gloo's threads, which do the same work in user space, cost a rank with one core about 2 ms of
compute a message of 0.8 MB (docs/results). Every rank sends its whole message to every other one:
one step, which for two ranks moves as many bytes as any AllReduce; among more,
``krakenlm.transport.connect`` gives large messages to gloo.

Shape letters: see ``krakenlm.model``; R is the ranks of a group.
"""

import contextlib
import os
import queue
import socket
import struct
import threading
import time
from collections import deque
from functools import partial

import torch
from torch import Tensor

from krakenlm.ranks.agreement import told_by_all
from krakenlm.ranks.mesh import connected
from krakenlm.transport.collective import Group, sum_branches

_TIMEOUT_SECONDS = 600.0
_SPIN_SECONDS = 0.002
"""Waiting shorter than this costs less than sleeping and being woken."""
_BUFFER_BYTES = 4 << 20
_SECRET_BYTES = 16


class SocketReducer:
    """Sums over ranks that TCP connects; a ``Collective``."""

    name = "sockets"

    def __init__(self, group: Group) -> None:
        self._group = group
        self._peers = _connect(group)
        self._awaited: deque[_Exchange] = deque()

    def begin(self, branches_KBTD: Tensor) -> "_Exchange":
        """Hand the sum of the local branches to the kernel."""
        parts_R = branches_KBTD.new_empty((self._group.size, *branches_KBTD.shape[1:]))
        sum_branches(branches_KBTD, parts_R[self._group.index, None])
        return self._exchange(parts_R)

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x``, stacked."""
        parts_R = x.new_empty((self._group.size, *x.shape))
        parts_R[self._group.index] = x
        exchange = self._exchange(parts_R)
        self.receive_up_to(exchange)
        return parts_R

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers:
            if peer is not None:
                peer.close()

    def _exchange(self, parts_R: Tensor) -> "_Exchange":
        mine = _bytes_of(parts_R[self._group.index])
        for peer in self._peers:
            if peer is not None:
                peer.send(mine)
        exchange = _Exchange(self, parts_R)
        self._awaited.append(exchange)
        return exchange

    def receive_up_to(self, last: "_Exchange") -> None:
        """Receive messages in the order they were begun, up to and with one of them."""
        while not last.received:
            exchange = self._awaited.popleft()
            for rank, peer in enumerate(self._peers):
                if peer is not None:
                    peer.receive(_bytes_of(exchange.parts_R[rank]))
            exchange.received = True


class _Exchange:
    """A sum under way."""

    def __init__(self, reducer: SocketReducer, parts_R: Tensor) -> None:
        self.parts_R = parts_R
        self.received = False
        self._reducer = reducer

    def wait(self) -> Tensor:
        """Take the others' messages from the kernel and add up, in rank order on every rank."""
        self._reducer.receive_up_to(self)
        if self.parts_R.shape[0] == 2:
            return torch.add(self.parts_R[0], self.parts_R[1]).unsqueeze(0)
        return self.parts_R.sum(dim=0, keepdim=True)


class _Peer:
    """One connection. What the send buffer cannot take is sent by a thread, in order."""

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self._connection = connection
        self._rank = rank
        self._overflow: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._unsent = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, message: memoryview) -> None:
        """Return at once; the kernel, or the thread behind it, sends."""
        if not self._unsent:
            with contextlib.suppress(BlockingIOError):
                sent = self._connection.send(message, socket.MSG_DONTWAIT)
                message = message[sent:]
        if message:
            with self._lock:
                self._unsent += 1
            self._overflow.put(message)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_overflow, daemon=True)
                self._thread.start()

    def _send_overflow(self) -> None:
        while (message := self._overflow.get()) is not None:
            with contextlib.suppress(OSError):  # the receiving side tells of a lost connection
                self._connection.sendall(message)
            with self._lock:
                self._unsent -= 1

    def receive(self, into: memoryview) -> None:
        """Fill a buffer; look again and again for a moment, then sleep until bytes come."""
        spin_until = time.monotonic() + _SPIN_SECONDS
        while into:
            flags = socket.MSG_DONTWAIT if time.monotonic() < spin_until else 0
            try:
                count = self._connection.recv_into(into, 0, flags)
            except BlockingIOError:
                if flags:
                    os.sched_yield()  # the rank that is to send may share this core
                    continue
                raise RuntimeError(f"rank {self._rank} has not answered for 10 minutes") from None
            except ConnectionResetError:  # it left with messages of ours unread
                count = 0
            if count == 0:
                raise RuntimeError(f"rank {self._rank} has closed its connection")
            into = into[count:]

    def close(self) -> None:
        self._overflow.put(None)
        if self._thread is not None:  # the other side may still want what it sends
            self._thread.join(_TIMEOUT_SECONDS)
        self._connection.close()


def _bytes_of(x: Tensor) -> memoryview:
    view: memoryview = x.view(-1).view(torch.uint8).numpy().data
    return view


def _connect(group: Group) -> list[_Peer | None]:
    """A connection to every other rank of the group; None stands in this rank's own place."""
    gather = partial(told_by_all, group=group.handle)
    connections = connected(group.index, group.size, gather, _TIMEOUT_SECONDS)
    return [
        None if connection is None else _Peer(_prepared(connection), rank)
        for rank, connection in enumerate(connections)
    ]


def _prepared(connection: socket.socket) -> socket.socket:
    timeout = struct.pack("ll", int(_TIMEOUT_SECONDS), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        # The kernel cuts this to its limit; asking for less than it would choose itself hurts.
        if connection.getsockopt(socket.SOL_SOCKET, option) < _BUFFER_BYTES:
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    return connection
