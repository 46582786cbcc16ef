"""How do the token files of a split read as one sequence?"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from krakenlm.data.manifest import Shard, sha256_of
from krakenlm.errors import KrakenError

# Tokens looked at in one go where all are: bounded memory, and few steps.
_CHUNK = 1 << 24

WHAT_TO_DO = "copy it again from where it is whole, or prepare the text again"


class Tokens(Protocol):
    """A one-dimensional, read-only sequence of tokens; a NumPy array is one.

    Slices are NumPy arrays: views where they can be, copies where they span shards.
    """

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> NDArray[Any]: ...


class ShardedTokens:
    """Several arrays of tokens, of one type, as one."""

    ndim = 1

    def __init__(self, shards: Sequence[NDArray[Any]]) -> None:
        assert shards
        self._shards = tuple(shards)
        self._ends = list(accumulate(map(len, shards)))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every shard."""
        return self._shards[0].dtype

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: slice, /) -> NDArray[Any]:
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise ValueError(f"a step of {step}: tokens in shards are read without gaps")
        parts = list(self._parts(start, stop))
        if not parts:
            return np.empty(0, self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _parts(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        index = bisect_right(self._ends, start)
        while start < stop:
            shard, end = self._shards[index], self._ends[index]
            begin = end - len(shard)
            yield shard[start - begin : min(stop, end) - begin]
            start, index = end, index + 1


def map_split(directory: Path, shards: Sequence[Shard], dtype: np.dtype[Any]) -> Tokens:
    """Map a split's token files from the disk.

    Raises:
        KrakenError: there are none, or one is missing, truncated or unreadable.
    """
    if not shards:
        raise KrakenError(f"{directory} has a split without tokens: prepare the text again")
    mapped = [_map(directory / shard.file, shard, dtype) for shard in shards]
    return mapped[0] if len(mapped) == 1 else ShardedTokens(mapped)


def is_damaged(path: Path, shard: Shard, dtype: np.dtype[Any], vocab_size: int) -> bool:
    """Whether a token file is not what the manifest describes; reads it whole.

    Raises:
        KrakenError: it cannot be read.
    """
    try:
        if path.stat().st_size != shard.tokens * dtype.itemsize or shard.tokens == 0:
            return True
        if sha256_of(path) != shard.sha256:
            return True
        return largest(np.memmap(path, dtype=dtype, mode="r")) >= vocab_size
    except FileNotFoundError:
        return True
    except OSError as error:
        raise KrakenError(f"cannot read {path}: {error.strerror or error}") from error


def chunks(tokens: Tokens, start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
    """The tokens from ``start`` to ``stop`` in arrays that fit into memory."""
    stop = len(tokens) if stop is None else stop
    for begin in range(start, stop, _CHUNK):
        yield tokens[begin : min(begin + _CHUNK, stop)]


def largest(tokens: Tokens) -> int:
    """The largest token; there has to be one."""
    return max(int(chunk.max()) for chunk in chunks(tokens))


def _map(path: Path, shard: Shard, dtype: np.dtype[Any]) -> NDArray[Any]:
    expected = shard.tokens * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != expected or size == 0:
            raise KrakenError(
                f"{path} has {size} bytes where {shard.tokens} tokens of {dtype.name} need "
                f"{expected}: it is truncated or damaged; {WHAT_TO_DO}"
            )
        return np.memmap(path, dtype=dtype, mode="r")
    except FileNotFoundError:
        raise KrakenError(f"{path} is missing: {WHAT_TO_DO}") from None
    except OSError as error:
        raise KrakenError(f"cannot read {path}: {error.strerror or error}") from error
