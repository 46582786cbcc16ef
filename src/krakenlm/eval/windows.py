"""Which tokens does each forward pass see, and which of them does it score?

Windows slide over a span of tokens by a stride. Each scores what no window before it has scored, so
that every token of the span but the first is scored exactly once.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from krakenlm.data.shards import Tokens

_TOKENS_AT_ONCE = 1 << 20
_BATCHES_AT_ONCE = 64


class Window(NamedTuple):
    """Tokens ``start`` to ``end``, of which those from ``first`` on are scored.

    ``start`` is -1 where the window begins with an end-of-text token in front of all tokens.
    """

    start: int
    first: int
    end: int


def slide(start: int, end: int, *, window: int, stride: int) -> Iterator[Window]:
    """The windows over the tokens from ``start`` to ``end``.

    Args:
        start: the first token, which is seen and not scored.
        end: behind the last one.
        window: tokens that a window spans.
        stride: how far apart windows begin, 1 to ``window - 1``. A token is scored with at least
            ``window - stride`` tokens in front of it, as far as the span has them.
    """
    first = start + 1
    while first < end:
        stop = min(start + window, end)
        yield Window(start, first, stop)
        start, first = start + stride, stop


def documents(tokens: Tokens, eos_id: int) -> Iterator[tuple[int, int]]:
    """Where each document begins, and where it ends behind its end-of-text token.

    What stands behind the last end-of-text token is a document too.
    """
    begin = 0
    for offset in range(0, len(tokens), _TOKENS_AT_ONCE):
        part = tokens[offset : offset + _TOKENS_AT_ONCE]
        for end in (np.flatnonzero(part == eos_id) + offset + 1).tolist():
            yield begin, end
            begin = end
    if begin < len(tokens):
        yield begin, len(tokens)


def windows_of(tokens: Tokens, *, window: int, stride: int, eos_id: int | None) -> Iterator[Window]:
    """All windows over a token stream.

    Args:
        tokens: one-dimensional.
        window: tokens that a window spans.
        stride: how far apart windows begin.
        eos_id: where it is given, each document is a span of its own that begins with this token,
            as documents do in training; otherwise the whole stream is one span.
    """
    if eos_id is None:
        yield from slide(0, len(tokens), window=window, stride=stride)
        return
    for begin, end in documents(tokens, eos_id):
        # The token in front is the end of the document before, or one that has to be made up.
        yield from slide(begin - 1, end, window=window, stride=stride)


def batches(windows: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    """Windows in batches, those of similar length together so that little of them is padding."""
    remaining = iter(windows)
    while pool := list(islice(remaining, batch_size * _BATCHES_AT_ONCE)):
        pool.sort(key=lambda window: window.start - window.end)
        for index in range(0, len(pool), batch_size):
            yield pool[index : index + batch_size]


def padded(tokens: Tokens, batch: list[Window], eos_id: int | None) -> NDArray[np.int64]:
    """The tokens of a batch's windows, [B, T], filled up with zeros on the right."""
    ids_BT = np.zeros((len(batch), max(end - start for start, _, end in batch)), np.int64)
    for row, (start, _, end) in zip(ids_BT, batch, strict=True):
        if start < 0:
            assert eos_id is not None, "only a document begins in front of all tokens"
            row[0] = eos_id
        begin = max(start, 0)
        row[begin - start : end - start] = tokens[begin:end]
    return ids_BT
