"""How does text become token ids on all cores?

By processes of one thread each: the threads of the ``tokenizers`` library leave the Python side of
the work (turning its results into arrays) to a single core. Little text is encoded in this process,
where starting others would take longer than the work.

Each process has a pipe of its own, and they take the batches in turn. A ``ProcessPoolExecutor`` has
one queue for all results, on which it waits for ever when a process ends in the middle of one, as
it does on Ctrl-C or when memory runs out.
"""

import os
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, cycle, islice
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from krakenlm.data.child import Child, ChildGoneError
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


def _by_processes(
    batches: Iterable[list[Piece]], encoding: Encoding, workers: int
) -> Generator[Encoded, None, None]:
    started: list[Child] = []
    given: deque[tuple[list[Piece], Child]] = deque()

    def next_one() -> Encoded:
        pieces, child = given.popleft()
        return Encoded(pieces, *child.receive())

    try:
        started.extend(Child(_encode_for, encoding) for _ in range(workers))
        for batch, child in zip(batches, cycle(started), strict=False):
            if len(given) == _AHEAD * workers:
                yield next_one()
            child.send(_plain(batch))
            given.append((batch, child))
        while given:
            yield next_one()
    except ChildGoneError as error:
        raise KrakenError(
            "a process that tokenized was killed, as happens when memory runs out: choose fewer "
            "--workers"
        ) from error
    finally:
        for child in started:
            child.end()


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
    """What a process does: it encodes what comes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    batches: queue.SimpleQueue[_Plain] = queue.SimpleQueue()
    # A thread, so that the parent, when it sends, never waits for one that is still encoding.
    threading.Thread(target=_receive, args=(pipe, batches), daemon=True).start()
    encoder = encoder_of(encoding.engine)
    while True:
        pipe.send(_encode(encoder, encoding.eos_id, *batches.get()))


def _receive(pipe: Connection, batches: "queue.SimpleQueue[_Plain]") -> None:
    with suppress(EOFError, OSError):  # this process ends with its parent
        while True:
            batches.put(pipe.recv())


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
