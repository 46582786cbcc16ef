"""The four architectures: who is reduced, when the sum is begun, when it is awaited.

Each is one function over the same blocks. A block's ``attend`` normalises its input and applies
attention, ``feed`` normalises and applies the feed-forward network; both return what each local
branch adds, without the residual. Sums over branches go through the Reducer. Nothing else in the
package asks which architecture it runs.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from krakenlm.config import WIRINGS, WiringName
from krakenlm.model.reduce import Pending, Reducer


class Block(Protocol):
    """One layer as a wiring sees it, bound to positions, cache and mask."""

    def attend(self, x_SBTD: Tensor) -> Tensor:
        """Attn_i(LN1_i(x)) for each local branch, as branches_KBTD."""
        ...

    def feed(self, x_SBTD: Tensor) -> Tensor:
        """FFN_i(LN2_i(x)) for each local branch, as branches_KBTD."""
        ...

    def attend_and_feed(self, x_SBTD: Tensor) -> Tensor:
        """Attn_i(n) + FFN_i(n) with n = LN1_i(x), as branches_KBTD."""
        ...


Join = Callable[[Tensor], Tensor]
Wiring = Callable[[Sequence[Block], Tensor, Reducer, Join], Tensor]


def kraken(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Tensor:
    """Kraken (arXiv 2408.07802, section 3): each sub-layer keeps a stream y_i of its own.

    The sum S of all streams is under way while attention reads y_i; only the feed-forward network
    needs it, as z_i = a_i + S. The streams meet in the conjunction, the one exposed sum.
    """
    y_KBTD = x_1BTD
    for index, block in enumerate(blocks):
        streams = reducer.begin(y_KBTD) if index else None
        a_KBTD = block.attend(y_KBTD)
        h_KBTD = y_KBTD + a_KBTD
        z_KBTD = h_KBTD if streams is None else a_KBTD + streams.wait()
        y_KBTD = h_KBTD + block.feed(z_KBTD)
    return reducer.begin(join(y_KBTD)).wait()


def standard(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Tensor:
    """GPT-2's pre-norm layer under tensor parallelism: two exposed sums a layer."""
    for block in blocks:
        x_1BTD = x_1BTD + reducer.begin(block.attend(x_1BTD)).wait()
        x_1BTD = x_1BTD + reducer.begin(block.feed(x_1BTD)).wait()
    return join(x_1BTD)


def parallel(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Tensor:
    """Attention and feed-forward side by side (GPT-J, PaLM): one exposed sum a layer."""
    for block in blocks:
        x_1BTD = x_1BTD + reducer.begin(block.attend_and_feed(x_1BTD)).wait()
    return join(x_1BTD)


def ladder(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Tensor:
    """Ladder Residual (arXiv 2501.06589): each half block reads x without its predecessor's part.

    So that part's sum is under way while the half block runs: x_i = x_{i-1} + h_i(x_{i-2}).
    """
    previous: Pending | None = None
    for block in blocks:
        for half_block in (block.attend, block.feed):
            begun = reducer.begin(half_block(x_1BTD))
            if previous is not None:
                x_1BTD = x_1BTD + previous.wait()
            previous = begun
    return join(x_1BTD if previous is None else x_1BTD + previous.wait())


WIRING_FUNCTIONS: dict[WiringName, Wiring] = {
    "kraken": kraken,
    "standard": standard,
    "parallel": parallel,
    "ladder": ladder,
}

assert WIRING_FUNCTIONS.keys() == WIRINGS.keys()
