"""What a rank is doing, in a few words, where others can read it after the rank is gone."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

ACTIVITY_BYTES = 128


class _Buffer(Protocol):
    """A ``bytearray``, or memory that processes share."""

    def __getitem__(self, key: slice, /) -> bytes | bytearray: ...

    def __setitem__(self, key: slice, value: bytes, /) -> None: ...


class Activity:
    """A place for a few words.

    Args:
        buffer: bytes that the words lie in.
        start: of this rank's ``ACTIVITY_BYTES``.

    Attributes:
        on_change: is called when the words are others than before. The same words again, as for
            each token of an answer, take less than a microsecond.
    """

    def __init__(self, buffer: _Buffer | None = None, start: int = 0) -> None:
        self._buffer = bytearray(ACTIVITY_BYTES) if buffer is None else buffer
        self._place = slice(start, start + ACTIVITY_BYTES)
        self.on_change: Callable[[], None] | None = None

    def __call__(self, doing: str) -> None:
        """Say what comes now, as in "it was decoding"."""
        words = doing.encode()[:ACTIVITY_BYTES].ljust(ACTIVITY_BYTES, b"\0")
        if words != self._buffer[self._place]:
            self._buffer[self._place] = words
            if self.on_change is not None:
                self.on_change()

    @property
    def now(self) -> str:
        """The words; empty before the first."""
        return bytes(self._buffer[self._place]).rstrip(b"\0").decode(errors="ignore")


def has_been_stopped(process: int | None) -> bool:
    """Whether a signal has stopped a process of this machine. Only Linux is asked."""
    with suppress(OSError):
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        return state.split()[0] == "T"
    return False
