"""Are all weights of a checkpoint finite?"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from krakenlm.errors import KrakenError
from krakenlm.model.tensor_files import Tensors

_BLOCK_VALUES = 1 << 24
_NAMED = 3


def check_weights(directory: Path, *, called: Path | None = None) -> None:
    """Refuse a checkpoint with weights that are not numbers, or infinite.

    It reads all of it, a block of rows at a time.

    Args:
        directory: of a model.
        called: what the complaint calls it; None is the directory.

    Raises:
        KrakenError: some are not finite: the tensors that hold them; or a file is damaged.
    """
    found = {}
    with Tensors(Path(directory)) as tensors:
        for name in tensors.names:
            bad = sum(int((~block.isfinite()).sum()) for block in _blocks(tensors.whole(name)))
            if bad:
                found[name] = bad
    if found:
        listed = [f"{name} ({bad:,} of them)" for name, bad in list(found.items())[:_NAMED]]
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise KrakenError(
            f"{called or directory} has weights that are NaN or infinite, in {', '.join(listed)}"
            f"{more}: copy the model again, or take a checkpoint from before training went wrong"
        )


def _blocks(lazy: Any) -> Iterator[Tensor]:
    shape = lazy.get_shape()
    if not shape:
        yield lazy[...]
        return
    step = max(1, _BLOCK_VALUES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield lazy[start : start + step]
