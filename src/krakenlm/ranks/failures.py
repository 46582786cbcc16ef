"""Why a rank ended, and what it notes, as the process hears it that started the ranks."""

import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from krakenlm.errors import KrakenError, RankFailedError, described

REPORT = "if it comes again, report it with the command and what --debug shows"
CONNECTING = (
    "connecting to the other ranks",
    "check that a network interface is up (`ip addr`) and that no firewall stands between them",
)
"""For ``trying``."""
BEAT_SECONDS = 1.0
"""From one sign of life of a rank to the next."""
TIMEOUT_SECONDS = 15.0
"""Silence after which a rank counts as lost, where nobody says otherwise."""


def check_timeout(seconds: float) -> None:
    """Refuse a limit that no rank could keep.

    Raises:
        KrakenError: it is below two signs of life, and not 0.
    """
    if seconds and not seconds >= 2 * BEAT_SECONDS:
        raise KrakenError(
            f"--timeout {seconds:g}: a rank gives a sign of life each second: give 2 or more, or "
            "0 to wait for as long as it takes"
        )


class Note(NamedTuple):
    """What a rank wants people to know."""

    text: str


def once(note: Callable[[str], None]) -> Callable[[str], None]:
    """The same, silent about what it has said before."""
    said: set[str] = set()

    def note_once(text: str) -> None:
        if text not in said:
            said.add(text)
            note(text)

    return note_once


@dataclass(frozen=True)
class Failure:
    """Why a rank ended. One failure brings others about; the order tells which came first.

    A problem for people is the cause wherever there is one. A rank that fell silent is killed by
    who notices. One that vanished without a word was killed, and the others' broken connections
    follow from that. Otherwise the earliest.
    """

    text: str
    kind: Literal["for people", "silent", "vanished", "not ours"]
    seconds: float = 0.0
    trace: str = ""

    @property
    def order(self) -> tuple[int, float]:
        """The least is the cause."""
        kinds = ("for people", "silent", "vanished", "not ours")
        return kinds.index(self.kind), self.seconds

    def as_exception(self) -> Exception:
        """What the caller of ``launch`` is told."""
        if self.kind == "for people":
            return KrakenError(self.text)
        if self.kind in ("silent", "vanished"):
            return RuntimeError(self.text)
        failed = RankFailedError(self.text)
        failed.__cause__ = _InTheRankError(self.trace)
        return failed


class _InTheRankError(Exception):
    """Shows the traceback of another process, as ``concurrent.futures`` does."""


def failure_of(error: BaseException, index: int | None = None) -> Failure:
    """What a rank says that met an error; without a number, the process that starts the ranks."""
    if isinstance(error, KrakenError):
        return Failure(str(error), "for people")
    who = "" if index is None else f"rank {index}"
    trace = "".join(traceback.format_exception(error))
    return Failure(described(error, who), "not ours", time.monotonic(), trace)


def while_doing(doing: str) -> str:
    """The end of "rank 1 was killed"; empty where nothing is known."""
    return f" while {doing}" if doing else ""


def vanished(name: str, code: int, doing: str = "") -> str:
    """What to say of a process that ended without a word.

    Args:
        name: of the process.
        code: it ended with; below zero, the signal that killed it.
        doing: what it was doing, where that is known.
    """
    then = while_doing(doing)
    if code == -signal.SIGKILL:
        return f"{name} was killed by signal {-code}{then}: the machine may be short of memory"
    if code < 0:
        return f"{name} was killed by signal {-code} ({signal.strsignal(-code)}){then}: {REPORT}"
    return f"{name} ended with exit code {code}{then}: {REPORT}"
