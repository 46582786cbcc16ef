"""Kraken sub-layers that several ranks share: a block whose parts are summed on the spot.

Each rank of a group holds some heads and feed-forward columns of the same sub-layers. The wiring
sees whole branches; the AllReduce that makes them whole is exposed, the wiring's own stays hidden.

Shape letters: see ``krakenlm.model``.
"""

from collections.abc import Callable

from torch import Tensor

from krakenlm.model.reduce import Reducer
from krakenlm.model.wiring import Block, Part, WrappedBlock


class PartialBlock(WrappedBlock):
    """One rank's part of a block, completed by the ranks that hold the rest.

    Args:
        block: this rank's part.
        parts: sums over the ranks that share the sub-layers.
    """

    def __init__(self, block: Block, parts: Reducer) -> None:
        super().__init__(block)
        self._parts = parts

    def compute(self, part: Part, function: Callable[[Tensor], Tensor], x_SBTD: Tensor) -> Tensor:
        """Whole branches."""
        parts_KBTD = function(x_SBTD)
        # The Reducer sums over a leading axis, which here must stay: sub-layers become batch.
        flat_1XTD = parts_KBTD.flatten(0, 1).unsqueeze(0)
        return self._parts.begin(flat_1XTD).wait().view_as(parts_KBTD)
