"""The one exception that is meant for people, and how the others reach them.

Whatever a user can cause (a missing file, a wrong number, a full disk) is raised as
``KrakenError``; the command line prints its message on one line and exits with code 2.
Broken invariants inside the library are ``assert``. Whatever else fails is not ours: ``trying``
says what was being tried, so that one line can tell people without a traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class KrakenError(Exception):
    """A problem the user can fix: the message says what, where, and what to do."""


class ConfigError(KrakenError, ValueError):
    """A configuration that cannot work: names the field, its value and what would fit."""


class DiskFullError(KrakenError):
    """There is no room to write something, or no more is allowed."""


class RequestError(KrakenError, ValueError):
    """A request that cannot be answered: names what is wrong with it and what would do."""


class RankFailedError(RuntimeError):
    """A rank met an error that is not ours; the message is its ``described``.

    The rank's traceback is the cause.
    """


class _Tried(NamedTuple):
    """What was being tried when an error came, and what people can do about it."""

    what: str
    advice: str


@contextmanager
def trying(what: str, advice: str) -> Iterator[None]:
    """Note what is being tried on an error that leaves the block, unless a block inside did so.

    Args:
        what: as in "failed while reading the weights".
        advice: what to do about it.
    """
    try:
        yield
    except KrakenError:
        raise
    except BaseException as error:
        vars(error).setdefault("krakenlm_tried", _Tried(what, advice))
        raise


def described(error: BaseException, who: str = "") -> str:
    """One line on an error that is not ours: who met it, what was tried, what it says, what to do.

    Args:
        error: perhaps one that ``trying`` has seen.
        who: met it, such as "rank 1"; empty where there is only one process.
    """
    if isinstance(error, RankFailedError):
        return str(error)
    lines = str(error).strip().splitlines()
    said = " ".join(lines if len(lines) < 2 else [lines[0], lines[-1]])  # a trace may lie between
    cause = f"{type(error).__name__}: {said}" if said else type(error).__name__
    tried: _Tried | None = vars(error).get("krakenlm_tried")
    if tried is None:
        return f"{who} failed: {cause}" if who else cause
    return f"{who} failed while {tried.what}: {cause}: {tried.advice}".lstrip()


def first_line(error: BaseException) -> str:
    """What a library's error says, on one line; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
