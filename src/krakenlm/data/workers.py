"""How does text become token ids on all cores?

By processes of one thread each: the threads of the ``tokenizers`` library leave the Python side of
the work (turning its results into arrays) to a single core. Little text is encoded in this process,
where starting others would take longer than the work.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from krakenlm.console import print_note
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
    pool = _pool(encoding, workers) if len(first) == _WORTH_PROCESSES else None
    if pool is not None:
        yield from _by_processes(everything, pool, workers)
        return
    encoder = encoder_of(encoding.engine)
    for batch in everything:
        yield Encoded(batch, *_encode(encoder, encoding.eos_id, *_plain(batch)))


def _pool(encoding: Encoding, workers: int) -> ProcessPoolExecutor | None:
    """The processes; None where the system does not let them share their locks."""
    try:
        return ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(encoding,)
        )
    except OSError as error:
        print_note(
            f"note: /dev/shm cannot hold what --workers share ({error.strerror}), so one process "
            "tokenizes: mount a tmpfs there that can be written to, or give it more room"
        )
        return None


def _by_processes(
    batches: Iterable[list[Piece]], pool: ProcessPoolExecutor, workers: int
) -> Generator[Encoded, None, None]:
    before = set(multiprocessing.active_children())
    waiting: deque[tuple[list[Piece], Future[tuple[NDArray[np.uint32], list[int]]]]] = deque()
    try:
        for batch in batches:
            with _interrupts_held():
                waiting.append((batch, pool.submit(_encode_here, *_plain(batch))))
            if len(waiting) > 2 * workers:
                pieces, future = waiting.popleft()
                yield Encoded(pieces, *future.result())
        while waiting:
            pieces, future = waiting.popleft()
            yield Encoded(pieces, *future.result())
    except BrokenProcessPool as error:
        raise KrakenError(
            "a process that tokenized was killed, as happens when memory runs out: choose fewer "
            "--workers"
        ) from error
    except BaseException:  # what they are at is of no use, so Ctrl-C need not wait for it
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _plain(batch: list[Piece]) -> tuple[list[str], list[bool]]:
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


_here: list[Any] = []
"""In a process that encodes: its encoder and the token that ends a document."""


def _start(encoding: Encoding) -> None:
    """Prepare a process that encodes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here[:] = encoder_of(encoding.engine), encoding.eos_id


def _encode_here(texts: list[str], last: list[bool]) -> tuple[NDArray[np.uint32], list[int]]:
    return _encode(_here[0], _here[1], texts, last)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its pool, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
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
