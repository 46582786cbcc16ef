"""Why a rank ended, and what it notes, as the process hears it that started the ranks."""

import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Literal, NamedTuple

from krakenlm.errors import KrakenError, RankFailedError, described

REPORT = "if it comes again, report it with the command and what --debug shows"


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

    A problem for people is the cause wherever there is one. A rank that vanished without a word
    was killed, and the others' broken connections follow from that. Otherwise the earliest.
    """

    text: str
    kind: Literal["for people", "vanished", "not ours"]
    seconds: float = 0.0
    trace: str = ""

    @property
    def order(self) -> tuple[int, float]:
        """The least is the cause."""
        return ("for people", "vanished", "not ours").index(self.kind), self.seconds

    def as_exception(self) -> Exception:
        """What the caller of ``launch`` is told."""
        if self.kind == "for people":
            return KrakenError(self.text)
        if self.kind == "vanished":
            return RuntimeError(self.text)
        failed = RankFailedError(self.text)
        failed.__cause__ = _InTheRankError(self.trace)
        return failed


class _InTheRankError(Exception):
    """Shows the traceback of another process, as ``concurrent.futures`` does."""


def failure_of(error: BaseException, index: int) -> Failure:
    """What a rank says that met an error."""
    if isinstance(error, KrakenError):
        return Failure(str(error), "for people")
    trace = "".join(traceback.format_exception(error))
    return Failure(described(error, f"rank {index}"), "not ours", time.monotonic(), trace)


def vanished(process: BaseProcess) -> str:
    """What to say of a rank that ended without a word."""
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return f"{process.name} was killed by signal {-code}: the machine may be short of memory"
    if code < 0:
        name = signal.strsignal(-code)
        return f"{process.name} was killed by signal {-code} ({name}): {REPORT}"
    return f"{process.name} ended with exit code {code}: {REPORT}"
