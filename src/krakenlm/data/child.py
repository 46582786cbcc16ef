"""How does this process give work to another one that Ctrl-C can end at any moment?

Over a pipe that only the two hold, so that whichever of them is gone, the other hears of it.
"""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from krakenlm.ending import end_with_parent, held_back


class ChildGoneError(Exception):
    """The process ended and had been asked for something."""


class Child:
    """A process that does what comes through a pipe.

    Args:
        target: called there with its end of the pipe and the ``arguments``; a function that can
            be imported. It is never interrupted by Ctrl-C and ends with this process.
        arguments: copied there.
    """

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_within_child, args=(target, theirs, *arguments), daemon=True
        )
        resource_tracker.ensure_running()
        with held_back(signal.SIGINT):
            self._process.start()
        theirs.close()  # so that the pipe ends with the process

    def send(self, what: object) -> None:
        """Give it something; where it is gone, ``receive`` says so."""
        with suppress(ConnectionError):
            self._pipe.send(what)

    def receive(self) -> Any:
        """What it sends.

        Raises:
            ChildGoneError: it ended before.
        """
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ChildGoneError from error

    def end(self) -> None:
        """End it, whatever it is at."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _within_child(target: Callable[..., None], pipe: Connection, *arguments: object) -> None:
    end_with_parent()
    with suppress(EOFError, ConnectionError):  # the parent went first
        target(pipe, *arguments)
