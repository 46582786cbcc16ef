"""How does text become token ids on all cores?

By processes of one thread each: the threads of the ``tokenizers`` library leave the Python side of
the work (turning its results into arrays) to a single core. Little text is encoded in this process,
where starting others would take longer than the work.

Each process has a pipe of its own, and they take the batches in turn. A ``ProcessPoolExecutor`` has
one queue for all results, on which it waits for ever when a process ends in the middle of one, as
it does on Ctrl-C or when memory runs out.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from krakenlm.data.text import Piece
from krakenlm.data.tokenizer import encode, encoder_of
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Some tenths of a second's work; encoded, it takes some ten MB in its process.
_BATCH_CHARS = 1 << 19
_BATCH_PIECES = 1024
# Fewer batches than this are encoded before other processes would have started.
_WORTH_PROCESSES = 8
# Batches that a process has been given: the one it is at, and what it goes on with.
_AHEAD = 2

_Plain: TypeAlias = tuple[list[str], list[bool]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """What turns text into tokens.

    Attributes:
        engine: the contents of a ``tokenizer.json``.
        eos_id: put behind each document.
    """

    engine: str
    eos_id: int


class Encoded(NamedTuple):
    """A batch of pieces as tokens.

    Attributes:
        pieces: in their order.
        ids: uint32, of all pieces in a row, the ends of documents included.
        lengths: how many of them are each piece's.
    """

    pieces: list[Piece]
    ids: NDArray[np.uint32]
    lengths: list[int]

    def each(self) -> Iterator[tuple[Piece, NDArray[np.uint32]]]:
        """Every piece with its tokens."""
        begin = 0
        for piece, length in zip(self.pieces, self.lengths, strict=True):
            yield piece, self.ids[begin : begin + length]
            begin += length


def encoded(
    stream: Iterable[Piece], encoding: Encoding, workers: int
) -> Generator[Encoded, None, None]:
    """Encode pieces, in their order and in bounded memory.

    Args:
        stream: read ahead by a few batches a worker.
        encoding: the same tokens come from any number of workers.
        workers: processes to use; with 1, this one, where ``tokenizers`` has threads of its own.

    Raises:
        KrakenError: a process was killed.
    """
    batches = _batches(stream)
    first = list(islice(batches, _WORTH_PROCESSES)) if workers > 1 else []
    everything = chain(first, batches)
    if len(first) == _WORTH_PROCESSES:
        yield from _by_processes(everything, encoding, workers)
        return
    encoder = encoder_of(encoding.engine)
    for batch in everything:
        yield Encoded(batch, *_encode(encoder, encoding.eos_id, *_plain(batch)))


class _Worker:
    """A process that encodes, and the pipe to it."""

    def __init__(self, encoding: Encoding) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_encode_for, args=(theirs, encoding), daemon=True
        )
        with _interrupts_held():
            self._process.start()
        theirs.close()  # so that its end is the pipe's

    def give(self, batch: list[Piece]) -> None:
        with suppress(ConnectionError):  # `take` says so
            self._pipe.send(_plain(batch))

    def take(self) -> tuple[NDArray[np.uint32], list[int]]:
        try:
            ids, lengths = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise KrakenError(
                "a process that tokenized was killed, as happens when memory runs out: choose "
                "fewer --workers"
            ) from error
        return ids, lengths

    def end(self) -> None:
        """Whatever it is at: that is of no use any more, so Ctrl-C need not wait for it."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _by_processes(
    batches: Iterable[list[Piece]], encoding: Encoding, workers: int
) -> Generator[Encoded, None, None]:
    started: list[_Worker] = []
    given: deque[tuple[list[Piece], _Worker]] = deque()

    def next_one() -> Encoded:
        pieces, worker = given.popleft()
        return Encoded(pieces, *worker.take())

    try:
        started.extend(_Worker(encoding) for _ in range(workers))
        for batch, worker in zip(batches, cycle(started), strict=False):
            if len(given) == _AHEAD * workers:
                yield next_one()
            worker.give(batch)
            given.append((batch, worker))
        while given:
            yield next_one()
    finally:
        for worker in started:
            worker.end()


def _plain(batch: list[Piece]) -> _Plain:
    """What the encoding process needs to know: the texts, and which of them end documents."""
    return [piece.text for piece in batch], [piece.last for piece in batch]


def _encode(
    encoder: "Tokenizer", eos_id: int, texts: list[str], last: list[bool]
) -> tuple[NDArray[np.uint32], list[int]]:
    found = encode(encoder, texts)
    for ids, ends_document in zip(found, last, strict=True):
        if ends_document:
            ids.append(eos_id)
    lengths = [len(ids) for ids in found]
    joined = np.fromiter(chain.from_iterable(found), np.uint32, count=sum(lengths))
    return joined, lengths


def _encode_for(pipe: Connection, encoding: Encoding) -> None:
    """What a process does: it encodes what comes until its parent ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    batches: queue.SimpleQueue[_Plain] = queue.SimpleQueue()
    # A thread, so that the parent, when it sends, never waits for one that is still encoding.
    threading.Thread(target=_receive, args=(pipe, batches), daemon=True).start()
    encoder = encoder_of(encoding.engine)
    with suppress(ConnectionError):
        while True:
            pipe.send(_encode(encoder, encoding.eos_id, *batches.get()))


def _receive(pipe: Connection, batches: "queue.SimpleQueue[_Plain]") -> None:
    try:
        while True:
            batches.put(pipe.recv())
    except (EOFError, OSError):  # nobody is left to encode for
        os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C; this one sees it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    chars = 0
    for piece in stream:
        batch.append(piece)
        chars += len(piece.text)
        if chars >= _BATCH_CHARS or len(batch) == _BATCH_PIECES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
