"""Ranks as processes of this machine: starting them, hearing from them, and ending them all.

They are forked by one process between them and this one, the starter of ``forking``: this one may
have threads and GPUs, which a fork would break.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from krakenlm.console import print_note
from krakenlm.ending import held_back
from krakenlm.ranks.failures import Failure, Note, once, vanished, while_doing
from krakenlm.ranks.forking import SECONDS_TO_END, Body, End, Stopped, start_ranks

_NAME = "krakenlm rank"
# NumPy's OpenBLAS starts its threads as soon as it is imported, and the starter must have none.
# PyTorch computes with threads of its own, of which each rank sets the number.
_THREADS_OF_BLAS = "OPENBLAS_NUM_THREADS"


def run_processes(
    body: Body,
    arguments: Sequence[Any],
    count: int,
    on_message: Callable[[Any], None],
    prepare: Callable[[], Any] = tuple,
    timeout: float = 0.0,
) -> None:
    """Run ``body(index, writer, activity, *arguments)`` in ``count`` processes until all ended.

    ``Note`` that they send is told to people, ``Failure`` raised, and anything else handed to
    ``on_message``. None of them outlives this call. ``prepare()`` is called once before, in the
    process that forks them, which has one thread. One that a signal stops for more than ``timeout``
    seconds has failed; 0 waits until it goes on.

    Raises:
        KrakenError, RankFailedError, RuntimeError: see ``Failure``.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    readers, writers = [reader for reader, _ in pipes], [writer for _, writer in pipes]
    control, to_control = context.Pipe(duplex=False)
    pickled = bytes(ForkingPickler.dumps((body, tuple(arguments), prepare, timeout)))
    starter = context.Process(
        target=start_ranks,
        args=(pickled, _NAME, writers, to_control),
        name="the process that starts the ranks",
    )
    try:
        resource_tracker.ensure_running()
        # Nobody but this process hears Ctrl-C: importing, the starter would print a traceback.
        with held_back(signal.SIGINT), _one_thread_of_blas():
            starter.start()
        for writer in (*writers, to_control):
            writer.close()
        _Listener(starter, control).listen(readers, on_message)
    finally:
        _end(starter, readers)


@contextmanager
def _one_thread_of_blas() -> Iterator[None]:
    """What is started meanwhile imports NumPy without starting threads."""
    before = os.environ.get(_THREADS_OF_BLAS)
    os.environ[_THREADS_OF_BLAS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS_OF_BLAS]
        else:
            os.environ[_THREADS_OF_BLAS] = before


class _Listener:
    """Hears what ranks say of themselves, and the starter of their ends.

    Args:
        starter: of the ranks.
        control: what it says.
    """

    def __init__(self, starter: BaseProcess, control: Connection) -> None:
        self._starter = starter
        self._control = control
        self._ends: dict[int, End] = {}
        self._starter_speaks = True
        self._failures: list[Failure] = []

    def listen(self, readers: Sequence[Connection], on_message: Callable[[Any], None]) -> None:
        """Pass messages on until every rank is done; raise for the first that fails."""
        open_readers = list(readers)
        note = once(print_note)
        while open_readers:
            # Once a rank has failed, the others get a moment to say why, then no more.
            heard = [*open_readers, self._control] if self._starter_speaks else open_readers
            ready = wait(heard, timeout=1.0 if self._failures else None)
            if self._failures and not ready:
                break
            for reader in ready:
                assert isinstance(reader, Connection)
                if reader is self._control:
                    self._hear_from_the_starter()
                    continue
                try:
                    message = reader.recv()
                except EOFError:
                    open_readers.remove(reader)
                    self._hear_of_the_end(readers.index(reader))
                    continue
                if isinstance(message, Failure):
                    self._failures.append(message)
                elif isinstance(message, Note):
                    note(message.text)
                else:
                    on_message(message)
        if self._failures:
            raise min(self._failures, key=lambda failure: failure.order).as_exception()

    def _hear_of_the_end(self, index: int) -> None:
        """Wait until the starter has said how a rank ended."""
        while index not in self._ends and self._starter_speaks:
            if not self._control.poll(SECONDS_TO_END):
                return
            self._hear_from_the_starter()

    def _hear_from_the_starter(self) -> None:
        """Note a failure where a rank, or the starter, did not end as it should."""
        try:
            message = self._control.recv()
        except EOFError:
            self._starter_speaks = False
            self._starter.join(SECONDS_TO_END)
            if self._starter.exitcode:
                said = vanished(self._starter.name, self._starter.exitcode)
                self._failures.append(Failure(said, "vanished"))
            return
        if isinstance(message, Failure):
            self._starter_speaks = False
            self._failures.append(message)
        elif isinstance(message, Stopped):
            self._failures.append(Failure(_stopped(message), "silent"))
        else:
            assert isinstance(message, End)
            self._ends[message.rank] = message
            if message.code:
                said = vanished(f"{_NAME} {message.rank}", message.code, message.doing)
                self._failures.append(Failure(said, "vanished"))


def _stopped(rank: Stopped) -> str:
    return (
        f"{_NAME} {rank.rank} has been stopped by a signal for {rank.seconds:.0f} s"
        f"{while_doing(rank.doing)}: a stopped rank holds up all others; --timeout sets how long "
        "they wait"
    )


def _end(starter: BaseProcess, readers: Sequence[Connection]) -> None:
    """End the starter, which ends the ranks."""
    if starter.pid is None:
        return
    if starter.is_alive():
        starter.terminate()
    starter.join(3 * SECONDS_TO_END)
    if starter.is_alive():
        starter.kill()
        starter.join()
    # Where it was killed, the ranks end by themselves, and with that what they hold open.
    end = time.monotonic() + SECONDS_TO_END
    for reader in readers:
        with suppress(EOFError, OSError):
            while reader.poll(max(0.0, end - time.monotonic())):
                reader.recv_bytes()
