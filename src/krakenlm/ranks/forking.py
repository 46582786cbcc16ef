"""The starter: one process that imports what ranks need, forks them, and says how each ends.

Importing PyTorch takes a rank longer than a short answer; so it is done once. The starter computes
nothing and has a single thread, since a forked process has no other than the one that forked it.
This module imports nothing large, so that the starter can say what fails while it imports.
"""

import mmap
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from krakenlm.ending import end_with_parent, held_back
from krakenlm.errors import trying
from krakenlm.ranks.activity import ACTIVITY_BYTES, Activity, has_been_stopped
from krakenlm.ranks.failures import BEAT_SECONDS, REPORT, failure_of

SECONDS_TO_END = 5.0
"""What a process gets that was asked to end."""

Body = Callable[..., None]
"""``body(index, writer, activity, *arguments)``: what a rank does, where it says what it has to
say, and where it puts down what it is doing."""


class End(NamedTuple):
    """How a rank ended.

    Attributes:
        rank: its number.
        code: as ``multiprocessing`` counts: 0, or an exit code, or minus a signal.
        doing: what it did last.
    """

    rank: int
    code: int
    doing: str


class Stopped(NamedTuple):
    """A rank that a signal has stopped, and that nothing has let go on.

    Attributes:
        rank: its number.
        seconds: for so long.
        doing: what it did last.
    """

    rank: int
    seconds: float
    doing: str


def start_ranks(
    pickled: bytes, name: str, writers: Sequence[Connection], control: Connection
) -> None:
    """The starter from its first moment to its last; it says ``End``, ``Stopped`` and ``Failure``.

    Args:
        pickled: ``Body``, arguments, what to do before the ranks are forked, and for how many
            seconds a rank may be stopped.
        name: of the ranks, which have their numbers behind it.
        writers: of each rank.
        control: to who started the starter.
    """
    processes: list[BaseProcess] = []
    board = mmap.mmap(-1, len(writers) * ACTIVITY_BYTES)  # the ranks inherit it
    activities = [Activity(board, index * ACTIVITY_BYTES) for index in range(len(writers))]
    code = 1
    try:
        with trying("starting the ranks", REPORT):
            # From who started this process.
            body, arguments, prepare, timeout = pickle.loads(pickled)  # noqa: S301
            prepare()
            with held_back(signal.SIGTERM):  # until all are known
                signal.signal(signal.SIGTERM, lambda *_: sys.exit())
                for index, writer in enumerate(writers):
                    others = {*writers, control} - {writer}
                    rank = (body, writer, others, (activities[index], *arguments))
                    processes.append(_forked(name, index, rank))
        for writer in writers:
            writer.close()
        _report(processes, activities, timeout, control)
        code = 0
    except Exception as error:
        with suppress(OSError):  # there may be nobody left to hear it
            control.send(failure_of(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end(processes)
        os._exit(code)


def end(processes: Sequence[BaseProcess]) -> None:
    """End processes: those that do not, when they are asked to, by force."""
    for process in processes:
        if process.is_alive():
            process.terminate()
            with suppress(OSError):  # one that is stopped hears no other signal
                os.kill(process.pid or 0, signal.SIGCONT)
    for process in processes:
        process.join(SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()


def _forked(name: str, index: int, arguments: tuple[Any, ...]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(
        target=_rank, args=(index, *arguments), name=f"{name} {index}"
    )
    process.start()
    return process


def _report(
    processes: Sequence[BaseProcess],
    activities: Sequence[Activity],
    timeout: float,
    control: Connection,
) -> None:
    """Say how each rank ends, and which is stopped, until all have or nobody listens."""
    listener = multiprocessing.parent_process()
    assert listener is not None
    running = {process.sentinel: index for index, process in enumerate(processes)}
    stopped = dict.fromkeys(range(len(processes)), 0.0)
    while running:
        # Counted in this process's own seconds: the whole session may have been stopped with it.
        ready = wait([*running, listener.sentinel], timeout=BEAT_SECONDS)
        if listener.sentinel in ready:
            return
        for sentinel in ready:
            assert isinstance(sentinel, int)
            index = running.pop(sentinel)
            processes[index].join()
            control.send(End(index, processes[index].exitcode or 0, activities[index].now))
        for index in running.values():
            is_stopped = has_been_stopped(processes[index].pid)
            stopped[index] = stopped[index] + BEAT_SECONDS if is_stopped else 0.0
            if timeout and stopped[index] > timeout:
                control.send(Stopped(index, timeout, activities[index].now))
                stopped[index] = 0.0


def _rank(
    index: int,
    body: Body,
    writer: Connection,
    others: Iterable[Connection],
    arguments: Sequence[Any],
) -> None:
    # A rank writes no files, so a signal may end it on the spot.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    end_with_parent()
    for other in others:
        other.close()  # or it would seem that who writes there lives on
    try:
        body(index, writer, *arguments)
    except BaseException as error:
        writer.send(failure_of(error, index))
    finally:
        writer.close()
        sys.stdout.flush()
        sys.stderr.flush()
        # All is said and done. Winding down, C++ now and then destroys a thread of gloo's that is
        # still there, and that aborts the process.
        os._exit(0)
