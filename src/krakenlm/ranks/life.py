"""Signs of life between ranks: one that dies, stalls or is cut off is noticed by all others.

Each rank tells every other one what it is doing whenever that changes. A thread of its own tells
them each second that it lives, and hears the same of them. A rank that computes for minutes goes on
telling, since PyTorch computes without the interpreter's lock. One that is stopped, or whose cable
is pulled, falls silent, while whoever waits for its sums would wait for as long as the transport
lets it.

Silence is counted in this process's own seconds: a machine that slept, or a session that was
stopped as a whole and goes on, has not lost anybody.
"""

import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from torch import distributed as dist

from krakenlm.ending import EXIT_BY_SIGTERM, sigterm_as
from krakenlm.errors import KrakenError, trying
from krakenlm.ranks.activity import ACTIVITY_BYTES, Activity, has_been_stopped
from krakenlm.ranks.agreement import boot, own_namespace, told_by_all
from krakenlm.ranks.failures import BEAT_SECONDS, CONNECTING, while_doing
from krakenlm.ranks.mesh import connected

_GOODBYE = 255  # in place of a length
_CONNECTING_SECONDS = 600.0
_MOMENT_SECONDS = 0.5
_LOOK_SECONDS = 0.05
_SILENCE = "it was stopped, its machine hangs, or the network between them is cut"


class Loss(NamedTuple):
    """Why a run cannot go on.

    Attributes:
        text: for people.
        silent: the rank did not end, as far as anybody knows: nothing else will tell of it.
    """

    text: str
    silent: bool


OnLoss = Callable[[Loss], None]
"""Hears of a loss on a thread of its own, and ends this process."""


class Peer:
    """What is known of one other rank.

    Args:
        rank: its number.
        connection: to it.
        process: its number on this machine; 0 where it is on another one.
    """

    def __init__(self, rank: int, connection: socket.socket, process: int) -> None:
        self.rank = rank
        self.connection = connection
        self.process = process
        self.silent_seconds = 0.0
        self.doing = ""
        self.has_left = False
        self._heard = b""

    def tell(self, message: bytes) -> None:
        """Send as much as goes at once: who does not read is lost in a moment anyway."""
        with suppress(OSError):
            self.connection.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def hear(self) -> bool:
        """Take what has come; False where the connection is broken without a goodbye."""
        try:
            more = self.connection.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            more = b""
        if not more:
            return self.has_left
        self.silent_seconds = 0.0
        self._heard += more
        while self._heard and not self.has_left:
            length = self._heard[0]
            if length == _GOODBYE:
                self.has_left = True
            elif len(self._heard) <= length:
                break
            else:
                self.doing = self._heard[1 : 1 + length].decode(errors="ignore")
                self._heard = self._heard[1 + length :]
        return True

    def described(self, what: str) -> str:
        """What to say of its loss."""
        return f"rank {self.rank} {what}{while_doing(self.doing)}"


class Life:
    """This rank's signs of life and what it hears of the others'.

    Args:
        peers: the others.
        activity: what this rank is doing.
        timeout: seconds of silence after which a rank is lost.
        on_loss: is told.
    """

    def __init__(
        self, peers: Sequence[Peer], activity: Activity, timeout: float, on_loss: OnLoss
    ) -> None:
        self._peers = peers
        self._activity = activity
        self._timeout = timeout
        self._on_loss = on_loss
        self._ended = threading.Event()
        activity.on_change = self._tell
        self._thread = threading.Thread(target=self._live, daemon=True, name="signs of life")
        self._thread.start()

    def end(self, *, goodbye: bool) -> None:
        """Fall silent.

        Args:
            goodbye: that nobody should mind: all ranks have done their part.
        """
        self._fall_silent()
        for peer in self._peers:
            if goodbye:
                peer.tell(bytes([_GOODBYE]))
            peer.connection.close()

    def gone(self, seconds: float) -> Loss | None:
        """Who is gone without a goodbye, or goes within the seconds; this rank falls silent.

        A broken sum comes sooner than the next beat, and the process may have been asked to end.
        """
        self._fall_silent()
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while selector.get_map() and (left := end - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if not key.data.hear():
                        return _gone(key.data)
                    if key.data.has_left:
                        selector.unregister(key.fileobj)
        return None

    def _fall_silent(self) -> None:
        self._activity.on_change = None
        self._ended.set()
        self._thread.join()

    def _tell(self) -> None:
        doing = self._activity.now.encode()
        for peer in self._peers:
            peer.tell(bytes([len(doing)]) + doing)

    def _live(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while not self._ended.is_set():
                lost = self._beat(selector)
                if lost is not None and not self._ended.is_set():
                    self._on_loss(lost)
                    return

    def _beat(self, selector: selectors.BaseSelector) -> Loss | None:
        """Tell, then listen for a beat; what has been lost, if anything."""
        self._tell()
        self._ended.wait(BEAT_SECONDS)
        for key, _ in selector.select(0):
            peer = key.data
            if not peer.hear():
                return _gone(peer)
            if peer.has_left:
                selector.unregister(peer.connection)
        for key in selector.get_map().values():
            peer = key.data
            peer.silent_seconds += BEAT_SECONDS
            if peer.silent_seconds > self._timeout:
                _kill_if_stopped(peer)
                said = peer.described(f"has given no sign of life for {self._timeout:.0f} s")
                return Loss(f"{said}: {_SILENCE}", silent=True)
        return None


@contextmanager
def living(
    index: int,
    size: int,
    activity: Activity,
    timeout: float,
    on_loss: OnLoss,
    group: dist.ProcessGroup | None = None,
) -> Iterator[None]:
    """Exchange signs of life with all ranks of a group meanwhile; all of them come here together.

    Args:
        index: this rank.
        size: how many there are.
        activity: what this rank is doing.
        timeout: seconds of silence after which a rank is lost; 0 leaves everything to the
            transports.
        on_loss: is told that a rank is lost; it ends this process.
        group: over which they meet, between CPUs; None is the default one.
    """
    if size == 1 or not timeout:
        yield
        return

    with trying(*CONNECTING):
        gather = partial(told_by_all, group=group)
        here = f"{boot()} {own_namespace('pid')}"  # where numbers of processes mean the same
        places = told_by_all((here, os.getpid()), group)
        peers = [
            Peer(rank, connection, place[1] if place[0] == here else 0)
            for rank, (connection, place) in enumerate(
                zip(connected(index, size, gather, _CONNECTING_SECONDS), places, strict=True)
            )
            if connection is not None
        ]
    life = Life(peers, activity, timeout, on_loss)
    goodbye = False
    try:
        yield
        goodbye = True
    except (SystemExit, KeyboardInterrupt) as leave:  # all ranks end, as they agreed or were asked
        if isinstance(leave, SystemExit) and leave.code == EXIT_BY_SIGTERM:  # is one lost?
            _report(life.gone(_LOOK_SECONDS), on_loss)
        goodbye = True
        raise
    except KrakenError:
        raise
    except Exception:  # perhaps of a sum that a lost rank has broken
        with sigterm_as(signal.SIG_IGN):  # torchrun may ask it to end before it has said so
            _report(life.gone(_MOMENT_SECONDS), on_loss)
        raise
    finally:
        life.end(goodbye=goodbye)


def _report(loss: Loss | None, on_loss: OnLoss) -> None:
    if loss is not None:
        on_loss(loss)


def _gone(peer: Peer) -> Loss:
    return Loss(peer.described("is gone"), silent=False)


def _kill_if_stopped(peer: Peer) -> None:
    """Who is stopped does not end when it is asked to."""
    if peer.process and has_been_stopped(peer.process):
        with suppress(OSError):
            os.kill(peer.process, signal.SIGKILL)


assert ACTIVITY_BYTES < _GOODBYE
