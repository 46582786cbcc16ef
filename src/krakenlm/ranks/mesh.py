"""TCP connections between the ranks of a run, and nobody else.

Who connects must send a secret that the process group has handed round, and its rank. A stranger
who connects first, sends something else, a part of a greeting or nothing is let go, and nobody
waits for it meanwhile.
"""

import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from krakenlm.ranks.network import own_address

_SECRET_BYTES = 16
_RANK = struct.Struct("!i")
_GREETING_BYTES = _SECRET_BYTES + _RANK.size
_CARD = struct.Struct(f"!64sH{_SECRET_BYTES}s")

Gather = Callable[[bytes], Sequence[bytes]]
"""Gives every rank's bytes, of one length, in rank order."""


class _Card(NamedTuple):
    """Where a rank listens. The secret is rank 0's."""

    address: str
    port: int
    secret: bytes


def connected(index: int, size: int, gather: Gather, seconds: float) -> list[socket.socket | None]:
    """A connection to every other rank; None stands in this rank's own place.

    Args:
        index: this rank.
        size: how many there are; all of them call this at the same point.
        gather: how they hand each other their addresses.
        seconds: to wait at most, for each of the others.

    Raises:
        TimeoutError: a rank did not connect.
        OSError: a rank cannot be reached.
    """
    address = own_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=size + 8) as server:
        cards = _exchanged(gather, address, server.getsockname()[1])
        secret = cards[0].secret
        connections: list[socket.socket | None] = [None] * size
        try:
            for rank in range(index):
                place = (cards[rank].address, cards[rank].port)
                connections[rank] = connection = socket.create_connection(place, seconds)
                connection.sendall(secret + _RANK.pack(index))
                # Python's own timeout would wait before every call, MSG_DONTWAIT or not.
                connection.settimeout(None)
            reception = _Reception(server, secret, range(index + 1, size))
            for rank, connection in reception.greeted(seconds):
                connections[rank] = connection
        except BaseException:
            for each in connections:
                if each is not None:
                    each.close()
            raise
    return connections


def _exchanged(gather: Gather, address: str, port: int) -> list[_Card]:
    card = _CARD.pack(address.encode(), port, secrets.token_bytes(_SECRET_BYTES))
    unpacked = (_CARD.unpack(each) for each in gather(card))
    return [_Card(a.rstrip(b"\0").decode(), port, secret) for a, port, secret in unpacked]


class _Reception:
    """Takes connections until the ranks that are expected have greeted, all greetings side by side.

    Args:
        server: takes them.
        secret: that a greeting must begin with.
        expected: ranks.
    """

    def __init__(self, server: socket.socket, secret: bytes, expected: Iterable[int]) -> None:
        self._server = server
        self._secret = secret
        self._expected = set(expected)
        self._heard: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()

    def greeted(self, seconds: float) -> Iterator[tuple[int, socket.socket]]:
        """Each rank with its connection, as they come.

        Raises:
            TimeoutError: one did not, in so many seconds.
        """
        deadline = time.monotonic() + seconds
        self._server.setblocking(False)
        with self._selector as selector:
            selector.register(self._server, selectors.EVENT_READ)
            try:
                while self._expected:
                    ready = selector.select(max(0.0, deadline - time.monotonic()))
                    if not ready and time.monotonic() >= deadline:
                        missing = ", ".join(map(str, sorted(self._expected)))
                        raise TimeoutError(f"rank {missing} did not connect in {seconds:.0f} s")
                    for key, _ in ready:
                        yield from self._hear(key.fileobj)
            finally:
                for stranger in self._heard:
                    stranger.close()

    def _hear(self, connection: object) -> Iterator[tuple[int, socket.socket]]:
        assert isinstance(connection, socket.socket)
        if connection is self._server:
            self._take()
            return
        greeting = _more(connection, self._heard[connection])
        if greeting is not None and len(greeting) < _GREETING_BYTES:
            self._heard[connection] = greeting
            return
        self._selector.unregister(connection)
        del self._heard[connection]
        rank = _rank_of(greeting, self._secret)
        if rank in self._expected:
            self._expected.remove(rank)
            connection.setblocking(True)
            yield rank, connection
        else:
            connection.close()

    def _take(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # it has gone again
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)
        self._heard[connection] = b""


def _more(connection: socket.socket, heard: bytes) -> bytes | None:
    """What has come up to now; None where nothing more will."""
    try:
        more = connection.recv(_GREETING_BYTES - len(heard))
    except BlockingIOError:
        return heard
    except OSError:
        return None
    return heard + more if more else None


def _rank_of(greeting: bytes | None, secret: bytes) -> int:
    """Whom a greeting is from; -1 is a stranger."""
    if greeting is None or not secrets.compare_digest(greeting[:_SECRET_BYTES], secret):
        return -1
    return int(_RANK.unpack(greeting[_SECRET_BYTES:])[0])
