"""How do tokens become the shards of a split?"""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from krakenlm.data.manifest import Shard
from krakenlm.data.progress import SplitProgress
from krakenlm.errors import KrakenError

_READ_BYTES = 1 << 22


class SplitWriter:
    """The token files of one split, in the making.

    Every shard but the last holds exactly ``shard_tokens`` tokens, so where they begin and end
    does not depend on how the tokens arrive.

    Args:
        folder: where the files go.
        name: of the split.
        dtype: of the files.
        shard_tokens: of a whole shard.
    """

    def __init__(
        self, folder: Path, name: str, dtype: np.dtype[np.unsignedinteger], shard_tokens: int
    ) -> None:
        self._folder = folder
        self._name = name
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._file: BinaryIO | None = None
        self._sha256 = hashlib.sha256()
        self._open_tokens = 0
        self.shards: list[Shard] = []

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def tokens(self) -> int:
        """How many have been written."""
        return sum(shard.tokens for shard in self.shards) + self._open_tokens

    def append(self, ids: NDArray[Any]) -> None:
        """Write tokens behind the others; a shard that is full is finished."""
        while len(ids):
            taken = ids[: self._shard_tokens - self._open_tokens]
            if self._file is None:
                self._file = self._path().open("wb")
            data = np.asarray(taken, self._dtype).tobytes()
            self._file.write(data)
            self._sha256.update(data)
            self._open_tokens += len(taken)
            ids = ids[len(taken) :]
            if self._open_tokens == self._shard_tokens:
                self._finish_shard()

    def finish(self) -> tuple[Shard, ...]:
        """Finish the last shard; returns all of them."""
        if self._open_tokens:
            self._finish_shard()
        return tuple(self.shards)

    def progress(self) -> SplitProgress:
        """What stands on the disk, when it does."""
        self._sync()
        return SplitProgress(
            shards=tuple(self.shards),
            open_tokens=self._open_tokens,
            open_sha256=self._sha256.hexdigest(),
        )

    def go_on_from(self, progress: SplitProgress) -> None:
        """Take what an interrupted run left; what it wrote behind ``progress`` is cut off.

        Raises:
            KrakenError: the file that it was writing is damaged.
        """
        self.shards = list(progress.shards)
        self._open_tokens = progress.open_tokens
        if not progress.open_tokens:
            return
        path, size = self._path(), progress.open_tokens * self._dtype.itemsize
        try:
            self._file = path.open("r+b")
        except FileNotFoundError:
            raise _damaged(path) from None
        left = size
        while left and (data := self._file.read(min(left, _READ_BYTES))):
            self._sha256.update(data)
            left -= len(data)
        if left or self._sha256.hexdigest() != progress.open_sha256:
            raise _damaged(path)
        self._file.truncate(size)
        self._file.seek(size)

    def _path(self) -> Path:
        """Of the shard that is being written."""
        return self._folder / f"{self._name}-{len(self.shards):05d}.bin"

    def _sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _finish_shard(self) -> None:
        assert self._file is not None
        self._sync()
        self._file.close()
        name, sha256 = self._path().name, self._sha256.hexdigest()
        self.shards.append(Shard(file=name, tokens=self._open_tokens, sha256=sha256))
        self._file, self._sha256, self._open_tokens = None, hashlib.sha256(), 0


def _damaged(path: Path) -> KrakenError:
    return KrakenError(
        f"{path} is damaged (it is not what progress.json describes): remove {path.parent} to "
        "begin anew"
    )
