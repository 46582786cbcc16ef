"""The architectures: who is reduced, when the sum is begun, when it is awaited.

Each is one function over the same blocks. A block's ``attend`` normalises its input and applies
attention, ``feed`` normalises and applies the feed-forward network; both return what each local
branch adds, without the residual. Sums over branches go through the Reducer. Nothing else in the
package asks which architecture it runs.

A wiring is a generator: before it waits for a sum it yields, and at last it yields the result.
``run`` goes on at once; ``interleave`` lets other parts of the prompt compute meanwhile. The sums
themselves do not pass through the generator: torch.compile follows ``next``, and ``send`` only from
PyTorch 2.13 on.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Literal, Protocol

from torch import Tensor

from krakenlm.config import WIRINGS, LayerRun, WiringName
from krakenlm.model.channels import Channels
from krakenlm.model.reduce import Pending, Reducer


class Block(Protocol):
    """One layer as a wiring sees it, bound to positions, cache and mask.

    Where only some positions matter behind the last layer, its ``attend`` and ``attend_and_feed``
    return those alone, and ``keep`` takes the same positions of the residual stream.
    """

    @property
    def message(self) -> Channels:
        """Of what the branches have added, the channels that this layer's sum carries."""
        ...

    def keep(self, x_SBTD: Tensor) -> Tensor:
        """The positions that go on behind this layer's attention: all but in the last layer."""
        ...

    def attend(self, x_SBTD: Tensor) -> Tensor:
        """Attn_i(LN1_i(x)) for each local branch, as branches_KBTD."""
        ...

    def feed(self, x_SBTD: Tensor) -> Tensor:
        """FFN_i(LN2_i(x)) for each local branch, as branches_KBTD."""
        ...

    def attend_and_feed(self, x_SBTD: Tensor) -> Tensor:
        """Attn_i(n) + FFN_i(n) with n = LN1_i(x), as branches_KBTD."""
        ...


Part = Literal["attention", "feed-forward", "attention and feed-forward"]
"""What a block computes at once."""


class WrappedBlock:
    """A block that leaves the computing to another, and sees to it: see ``compute``."""

    def __init__(self, block: Block) -> None:
        self._block = block

    @property
    def message(self) -> Channels:
        """As the block within."""
        return self._block.message

    def keep(self, x_SBTD: Tensor) -> Tensor:
        """As the block within."""
        return self._block.keep(x_SBTD)

    def attend(self, x_SBTD: Tensor) -> Tensor:
        """What ``compute`` makes of attention."""
        return self.compute("attention", self._block.attend, x_SBTD)

    def feed(self, x_SBTD: Tensor) -> Tensor:
        """What ``compute`` makes of the feed-forward network."""
        return self.compute("feed-forward", self._block.feed, x_SBTD)

    def attend_and_feed(self, x_SBTD: Tensor) -> Tensor:
        """What ``compute`` makes of both."""
        function = self._block.attend_and_feed
        return self.compute("attention and feed-forward", function, x_SBTD)

    def compute(self, part: Part, function: Callable[[Tensor], Tensor], x_SBTD: Tensor) -> Tensor:
        """The branches_KBTD to go on with: subclasses call the function, and do their own."""
        raise NotImplementedError


Join = Callable[[Tensor], Tensor]
Pass = Generator[Tensor | None, None, None]
Wiring = Callable[[Sequence[Block], Tensor, Reducer, Join], Pass]


def run(steps: Pass) -> Tensor:
    """One pass from beginning to end: each sum is awaited where the wiring needs it."""
    result = next(steps)
    while result is None:
        result = next(steps)
    return result


def interleave(passes: Sequence[Pass]) -> list[Tensor]:
    """Several passes of one wiring in turn, each running until it needs a sum.

    While one pass's sum is under way, the others compute: a chunk of a prompt hides its AllReduces
    behind the other chunks as well as behind its own attention. The passes begin their sums in the
    same order on every rank, and each layer of an earlier pass attends before the same layer of a
    later one, so that later chunks find its keys and values.
    """
    results: list[Tensor] = []
    waiting = list(passes)
    while waiting:
        still_waiting = []
        for steps in waiting:
            result = next(steps)
            if result is None:
                still_waiting.append(steps)
            else:
                results.append(result)  # passes of one wiring end in the order they began
        waiting = still_waiting
    return results


def kraken(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Pass:
    """Kraken (arXiv 2408.07802, section 3): each sub-layer keeps a stream y_i of its own.

    The sum S of all streams is under way while attention reads y_i; only the feed-forward network
    needs it, as z_i = a_i + S. The streams meet in the conjunction, the one exposed sum.
    """
    y_KBTD = x_1BTD
    for index, block in enumerate(blocks):
        kept_KBTD = block.keep(y_KBTD)
        streams = reducer.begin(kept_KBTD) if index else None
        a_KBTD = block.attend(y_KBTD)
        h_KBTD = kept_KBTD + a_KBTD
        z_KBTD = h_KBTD
        if streams is not None:
            yield None
            z_KBTD = a_KBTD + streams.wait()
        y_KBTD = h_KBTD + block.feed(z_KBTD)
    joined = reducer.begin(join(y_KBTD))
    yield None
    yield joined.wait()


def standard(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Pass:
    """GPT-2's pre-norm layer under tensor parallelism: two exposed sums a layer."""
    for block in blocks:
        attended = reducer.begin(block.attend(x_1BTD))
        yield None
        x_1BTD = block.keep(x_1BTD) + attended.wait()
        fed = reducer.begin(block.feed(x_1BTD))
        yield None
        x_1BTD = x_1BTD + fed.wait()
    yield join(x_1BTD)


def parallel(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Pass:
    """Attention and feed-forward side by side (GPT-J, PaLM): one exposed sum a layer."""
    for block in blocks:
        added = reducer.begin(block.attend_and_feed(x_1BTD))
        yield None
        x_1BTD = block.keep(x_1BTD) + added.wait()
    yield join(x_1BTD)


def ladder(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Pass:
    """Ladder Residual (arXiv 2501.06589): each half block reads x without its predecessor's part.

    So that part's sum is under way while the half block runs: x_i = x_{i-1} + h_i(x_{i-2}).
    """
    fed: Pending | None = None
    for block in blocks:
        attended = reducer.begin(block.attend(x_1BTD))
        if fed is not None:
            yield None
            x_1BTD = x_1BTD + fed.wait()
        x_1BTD = block.keep(x_1BTD)
        fed = reducer.begin(block.feed(x_1BTD))
        yield None
        x_1BTD = x_1BTD + attended.wait()
    assert fed is not None, "a model has a layer"
    yield None
    yield join(x_1BTD + fed.wait())


def shared(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Pass:
    """Kraken's schedule over one residual stream x, which all branches share.

    ``own`` is what each branch has added and no sum has carried yet: what the last layer added, or
    where a layer's ``message`` is a group of channels, in each group what came since its turn. A
    branch reads its own at once, as y_i = x + own_i, while the sum over all is under way behind its
    attention: the others' parts reach it in the feed-forward network. One branch alone is the
    standard layer.
    """
    first = blocks[0]
    a_KBTD = first.attend(x_1BTD)
    x_1BTD = first.keep(x_1BTD)
    own_KBTD = a_KBTD + first.feed(x_1BTD + a_KBTD)
    for block in blocks[1:]:
        kept_KBTD = block.keep(own_KBTD)
        added = reducer.begin(block.message.of(kept_KBTD))
        a_KBTD = block.attend(x_1BTD + own_KBTD)
        x_1BTD = block.keep(x_1BTD)
        yield None
        x_1BTD = block.message.add(x_1BTD, added.wait())
        own_KBTD = block.message.renew(kept_KBTD, a_KBTD)
        own_KBTD = own_KBTD + block.feed(x_1BTD + own_KBTD)
    added = reducer.begin(own_KBTD)
    yield None
    yield join(x_1BTD + added.wait())


def lagged(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Pass:
    """``shared`` without own outputs: x_l = x_{l-1} + Attn(LN1(x_{l-2})) + FFN(LN2(x_{l-1})).

    No branch reads anything but the stream, so the function is the same for any number of them.
    """
    last_KBTD: Tensor | None = None
    for block in blocks:
        added = None if last_KBTD is None else reducer.begin(block.keep(last_KBTD))
        a_KBTD = block.attend(x_1BTD)
        x_1BTD = block.keep(x_1BTD)
        if added is not None:
            yield None
            x_1BTD = x_1BTD + added.wait()
        last_KBTD = a_KBTD + block.feed(x_1BTD)
    assert last_KBTD is not None, "a model has a layer"
    added = reducer.begin(last_KBTD)
    yield None
    yield join(x_1BTD + added.wait())


def lagged_layer(blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join) -> Pass:
    """``parallel`` a layer late: x_l = x_{l-1} + Attn(LN1(x_{l-2})) + FFN(LN1(x_{l-2})).

    So a whole layer's work hides the sum of the layer before.
    """
    last_KBTD: Tensor | None = None
    for block in blocks:
        added = None if last_KBTD is None else reducer.begin(block.keep(last_KBTD))
        last_KBTD = block.attend_and_feed(x_1BTD)
        x_1BTD = block.keep(x_1BTD)
        if added is not None:
            yield None
            x_1BTD = x_1BTD + added.wait()
    assert last_KBTD is not None, "a model has a layer"
    added = reducer.begin(last_KBTD)
    yield None
    yield join(x_1BTD + added.wait())


WIRING_FUNCTIONS: dict[WiringName, Wiring] = {
    "kraken": kraken,
    "standard": standard,
    "parallel": parallel,
    "ladder": ladder,
    "shared": shared,
    "kraken-shared": shared,
    "lagged": lagged,
    "lagged-layer": lagged_layer,
}

assert WIRING_FUNCTIONS.keys() == WIRINGS.keys()


def wired(
    runs: Sequence[LayerRun], blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join
) -> Pass:
    """The blocks of these runs, each run joined by its own wiring."""
    if len(runs) == 1:
        wiring, layers = runs[0]
        function = WIRING_FUNCTIONS[wiring]
        return function(blocks[layers.start : layers.stop], x_1BTD, reducer, join)
    return _in_turn(runs, blocks, x_1BTD, reducer, join)


def _in_turn(
    runs: Sequence[LayerRun], blocks: Sequence[Block], x_1BTD: Tensor, reducer: Reducer, join: Join
) -> Pass:
    """Run after run: wirings that share a model begin with one stream and end with one."""
    for wiring, layers in runs:
        function = WIRING_FUNCTIONS[wiring]
        for result in function(blocks[layers.start : layers.stop], x_1BTD, reducer, join):
            if result is None:
                yield None
            else:
                x_1BTD = result
    yield x_1BTD
