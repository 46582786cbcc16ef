"""Sums over ranks that stay in flight through ``torch.compile``.

A compiler may move an operator to where its result is first needed, which would begin a sum only
when it is awaited: right numbers, no overlap. So beginning and awaiting are operators that declare
more than they do. ``begin_sum`` claims to write to the branches, hence whatever reads them
afterwards stays behind it. ``await_sum`` claims to write to what was computed last, hence stays
behind that. The sum's buffer is a tensor of the graph, alive from one to the other.

Branches of a part of the channels are a view. What is read behind them is the whole, and Inductor
computes wrong numbers where an operator claims to write to a view (PyTorch 2.13, as vLLM sets it).
There the sum is begun on a copy, and ``hold_back`` claims to write to what the next block reads.

Shape letters: see ``krakenlm.model``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from krakenlm.errors import KrakenError
from krakenlm.model.reduce import Pending
from krakenlm.model.wiring import Block, Part, WrappedBlock
from krakenlm.transport.collective import Collective, Group, sum_branches
from krakenlm.transport.connect import Transport, connect_group

_OPERATORS = {
    "begin_sum": "(Tensor(a!) branches, Tensor(b!) total, int slot) -> ()",
    "hold_back": "(Tensor(a!) read_next, Tensor(b!) begun) -> ()",
    "await_sum": "(Tensor(a!) computed, Tensor(b!) total, int slot) -> ()",
}
OPERATORS = tuple(f"krakenlm::{name}" for name in _OPERATORS)


class Carrier(Protocol):
    """Carries one sum of a forward pass, again and again."""

    def begin(self, branches_KBTD: Tensor, total_1BTD: Tensor) -> None:
        """Start to add up the branches of all ranks into ``total_1BTD``."""
        ...

    def wait(self) -> None:
        """Return (on a GPU: go on with the current stream) when the total is there."""
        ...


# By slot, which is how a compiled graph names its sums.
_carriers: list[Carrier] = []
_buffers: dict[int, int] = {}


def _begin_sum(branches: Tensor, total: Tensor, slot: int) -> None:
    _buffers[slot] = total.data_ptr()
    _carriers[slot].begin(branches, total)


def _hold_back(read_next: Tensor, begun: Tensor) -> None:
    """Nothing: what counts is what it claims."""


def _await_sum(computed: Tensor, total: Tensor, slot: int) -> None:
    # A compiler that copied the buffer meanwhile would have copied an unfinished sum.
    assert total.data_ptr() == _buffers[slot], "a sum in flight has lost its buffer"
    _carriers[slot].wait()


def _nothing(*_: object, **__: object) -> None:
    """What the operators do to shapes."""


def _register() -> Any:
    """Define the operators; they live as long as the library that is returned."""
    library: Any = torch.library.Library("krakenlm", "FRAGMENT")  # type: ignore[no-untyped-call]
    functions = {"begin_sum": _begin_sum, "hold_back": _hold_back, "await_sum": _await_sum}
    for name, function in functions.items():
        library.define(name + _OPERATORS[name])
        library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"krakenlm::{name}", _nothing)
    return library


_library = _register()


class CollectiveCarrier:
    """A transport of the package's engine: shared memory, sockets or gloo.

    Args:
        collective: carries all sums of a pass, in the order in which they are begun.
    """

    def __init__(self, collective: Collective) -> None:
        self._collective = collective
        self._under_way: tuple[Pending, Tensor] | None = None

    def begin(self, branches_KBTD: Tensor, total_1BTD: Tensor) -> None:
        """Hand the branches over."""
        self._under_way = self._collective.begin(branches_KBTD), total_1BTD

    def wait(self) -> None:
        """Block until the sum is there."""
        assert self._under_way is not None, "awaited before it was begun"
        pending, total_1BTD = self._under_way
        total_1BTD.copy_(pending.wait())
        self._under_way = None


class StreamCarrier:
    """An AllReduce on a CUDA stream beside compute, joined by two events made once.

    A CUDA graph that holds both ends captures the fork and the join.
    """

    def __init__(self, group: dist.ProcessGroup, stream: torch.cuda.Stream) -> None:
        self._group = group
        self._stream = stream
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def begin(self, branches_KBTD: Tensor, total_1BTD: Tensor) -> None:
        """Let the side stream go on from here and sum."""
        sum_branches(branches_KBTD, total_1BTD)
        self._ready.record(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._ready.wait(self._stream)
            dist.all_reduce(total_1BTD, group=self._group)
            self._done.record(self._stream)

    def wait(self) -> None:
        """Make the current stream wait for the side stream."""
        self._done.wait(torch.cuda.current_stream())


class BlockingCarrier:
    """An AllReduce that is finished when ``begin`` returns: the same operators, no overlap.

    Args:
        all_reduce: returns the sum over ranks, in its argument's memory or in memory of its own.
    """

    def __init__(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        self._all_reduce = all_reduce

    def begin(self, branches_KBTD: Tensor, total_1BTD: Tensor) -> None:
        """Sum at once."""
        sum_branches(branches_KBTD, total_1BTD)
        summed_1BTD = self._all_reduce(total_1BTD)
        if summed_1BTD.data_ptr() != total_1BTD.data_ptr():
            total_1BTD.copy_(summed_1BTD)

    def wait(self) -> None:
        """Nothing is under way."""


def asynchronous_carriers(
    group: Group, count: int, device: torch.device, transport: Transport
) -> tuple[list[Carrier], str]:
    """Carriers for the ``count`` sums of a forward pass, and what carries them, by name.

    Raises:
        KrakenError: a transport that these ranks do not have.
    """
    if device.type != "cuda":
        collective = connect_group(group, device, transport)
        return [CollectiveCarrier(collective) for _ in range(count)], collective.name
    if transport not in ("auto", "process-group"):
        raise KrakenError(f"transport={transport!r}: GPUs exchange through NCCL: leave it out")
    assert group.handle is not None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return [StreamCarrier(group.handle, stream) for _ in range(count)], "NCCL"


def enlist(carriers: Sequence[Carrier]) -> range:
    """Make carriers known to the operators; returns their slots, for ``OrderedReducer``."""
    first = len(_carriers)
    _carriers.extend(carriers)
    return range(first, len(_carriers))


class OrderedReducer:
    """Sums by the operators of this module, in one forward pass.

    Args:
        slots: of the pass's carriers, from ``enlist``.

    ``wrap`` must see every block of the pass.
    """

    def __init__(self, slots: range) -> None:
        self._slot = slots.start
        self._end = slots.stop
        self.computed_KBTD: Tensor | None = None
        self._copied_KBTM: Tensor | None = None

    def begin(self, branches_KBTD: Tensor) -> "InFlight":
        """Start the sum on a buffer of its own."""
        slot = self._slot
        assert slot < self._end, "more sums than the wiring said"
        self._slot = slot + 1
        computed_KBTD = self.computed_KBTD
        if computed_KBTD is not None and branches_KBTD.shape[-1] < computed_KBTD.shape[-1]:
            branches_KBTD = branches_KBTD.clone(memory_format=torch.contiguous_format)
            self._copied_KBTM = branches_KBTD
        total_1BTD = branches_KBTD.new_empty(1, *branches_KBTD.shape[1:])
        torch.ops.krakenlm.begin_sum(branches_KBTD, total_1BTD, slot)
        return InFlight(self, total_1BTD, slot)

    def hold_back(self, x_SBTD: Tensor) -> None:
        """Keep what a block is about to read behind the last begin."""
        if self._copied_KBTM is not None:
            torch.ops.krakenlm.hold_back(x_SBTD, self._copied_KBTM)
            self._copied_KBTM = None

    def wrap(self, index: int, block: Block) -> Block:
        """A block that lets this Reducer know what was computed last."""
        return _WatchedBlock(block, self)


class InFlight:
    """A sum that has been begun."""

    def __init__(self, reducer: OrderedReducer, total_1BTD: Tensor, slot: int) -> None:
        self._reducer = reducer
        self._total_1BTD = total_1BTD
        self._slot = slot

    def wait(self) -> Tensor:
        """The sum, no earlier than what was computed last."""
        computed_KBTD = self._reducer.computed_KBTD
        assert computed_KBTD is not None, "a block runs before anything is awaited"
        torch.ops.krakenlm.await_sum(computed_KBTD, self._total_1BTD, self._slot)
        return self._total_1BTD


class _WatchedBlock(WrappedBlock):
    def __init__(self, block: Block, reducer: OrderedReducer) -> None:
        super().__init__(block)
        self._reducer = reducer

    def compute(self, part: Part, function: Callable[[Tensor], Tensor], x_SBTD: Tensor) -> Tensor:
        self._reducer.hold_back(x_SBTD)
        branches_KBTD = function(x_SBTD)
        self._reducer.computed_KBTD = branches_KBTD
        return branches_KBTD
