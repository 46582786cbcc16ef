"""Sums over the engine's own transport: where they are begun and awaited, and beside compute.

On CPUs a sum costs a rank time at three places: where it puts its message on the way, where it
takes the others' and adds up, and, if they are not there by then, in waiting. The first is timed
around ``begin``, the second around ``wait`` long after everybody has begun, and what a sum that is
awaited at once takes beyond both is the way.

Shape letters: see ``krakenlm.model``.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from krakenlm.bench.ranks import barrier, gathered, now
from krakenlm.calibrate.budget import Budget
from krakenlm.calibrate.operators import Workbench
from krakenlm.ranks.launch import Rank
from krakenlm.transport.collective import Collective, Group
from krakenlm.transport.connect import Transport, connect_group

_LEAST_SECONDS = 0.0004
_MOST_IN_A_ROW = 32
_SUMS_A_SIZE = 16
"""So many at least are waited for, in three rounds and before them."""
_BESIDE_BYTES = 1 << 20
_BESIDE_PRODUCT = 128, 512, 512
_LONGER, _SHORTER = 1.5, 0.6
"""Compute beside a sum, in times of the sum: to hide it all, and to leave some of it over."""
_CLEAR, _MOST_LOST = 0.2, 0.75
"""A way that is shorter, as a share of the sum, is none; and what may be lost beside each other."""


class SumTime(NamedTuple):
    """Seconds of one sum.

    Attributes:
        nbytes: of a message.
        ranks: how many summed.
        whole: begun and awaited at once.
        begin: of that, in beginning; nought on GPUs, as ``wait``.
        wait: in taking what is there, and adding up.
    """

    nbytes: int
    ranks: int
    whole: float
    begin: float
    wait: float

    @property
    def wire(self) -> float:
        """What is left: the way."""
        return max(self.whole - self.begin - self.wait, 0.0)


class BesideTimes(NamedTuple):
    """Seconds of compute and of a sum, alone and beside one another.

    Attributes:
        sum: one of the messages' largest, alone.
        long: compute that outlasts it, alone.
        long_beside: begun, that, and awaited.
        short: compute that the sum outlasts, alone.
        short_beside: the same beside the sum.
    """

    sum: SumTime
    long: float
    long_beside: float
    short: float
    short_beside: float


class Slowdowns(NamedTuple):
    """How much longer one takes beside the other."""

    compute: float
    wire: float


def slowdowns(times: BesideTimes) -> Slowdowns:
    """How much compute and a sum slow each other down, as ``krakenlm.plan.schedule`` plays it.

    Beside one another compute goes on at a rate u and the sum at v. Compute that outlasts the sum,
    of W on its way, takes W (1 - u) / v longer than alone; and a sum that outlasts compute of C
    takes C (1 - v) / u longer.
    """
    begin, wait, wire = times.sum.begin, times.sum.wait, times.sum.wire
    if wire < _CLEAR * times.sum.whole:  # all of it is compute, and nothing is under way meanwhile
        return Slowdowns(1.0, 1.0)
    a = (times.long_beside - begin - wait - times.long) / wire
    b = (times.short_beside - begin - wait - wire) / times.short
    a, b = (min(max(share, 0.0), _MOST_LOST) for share in (a, b))
    u, v = (1.0 - a) / (1.0 - a * b), (1.0 - b) / (1.0 - a * b)
    return Slowdowns(1.0 / u, 1.0 / v)


class _Message(NamedTuple):
    collective: Collective
    x_1BTD: Tensor
    ranks: int

    @property
    def nbytes(self) -> int:
        return self.x_1BTD.nbytes


def numbers_of_ranks(size: int) -> list[int]:
    """For which numbers of ranks sums are measured: powers of two, and all."""
    powers = itertools.takewhile(lambda n: n < size, (2**e for e in itertools.count(1)))
    return [*powers, size] if size > 1 else []


def time_sums(
    rank: Rank,
    dtype: torch.dtype,
    transport: Transport,
    sizes: Sequence[int],
    budget: Budget,
    *,
    until: float,
) -> tuple[list[SumTime], BesideTimes, str]:
    """Sums of all sizes and numbers of ranks, one beside compute, and what carries them."""
    groups = _groups(rank, transport)
    everyone = groups[rank.size]
    assert everyone is not None
    mine: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    share = (until - budget.elapsed()) / (len(groups) * len(sizes) + 2)
    for ranks, collective in groups.items():
        for number, nbytes in enumerate(sizes):
            deadline = budget.elapsed() + share
            message = _message(rank, dtype, collective, nbytes, ranks)
            once = _once(rank, message)
            mine[nbytes, ranks] = _rounds(rank, message, once, budget, deadline)
            # What is larger may take too long, but a line needs two points.
            if number and 4 * once > share / _SUMS_A_SIZE:
                break
    times = [_median(rank, *key, samples) for key, samples in mine.items()]
    largest = max((t for t in times if t.ranks == rank.size), key=_near(_BESIDE_BYTES))
    beside = _beside(rank, dtype, everyone, largest, budget, until)
    name = everyone.name
    for collective in groups.values():
        if collective is not None:
            collective.close()
    return times, beside, name


def _near(nbytes: int) -> Callable[[SumTime], float]:
    return lambda time: -abs(time.nbytes - nbytes)


def _groups(rank: Rank, transport: Transport) -> dict[int, Collective | None]:
    """What the first so many ranks sum over; None for those that are not among them."""
    found: dict[int, Collective | None] = {}
    for ranks in numbers_of_ranks(rank.size):
        whole = ranks == rank.size
        handle = None if whole else dist.new_group(list(range(ranks)))
        group = Group(rank.index, ranks, handle)
        is_member = rank.index < ranks
        found[ranks] = (
            connect_group(group, rank.device, transport, rank.note) if is_member else None
        )
        barrier(rank)
    return found


def _message(
    rank: Rank, dtype: torch.dtype, collective: Collective | None, nbytes: int, ranks: int
) -> _Message | None:
    if collective is None:
        return None
    count = max(nbytes // dtype.itemsize, 1)
    x_1BTD = torch.zeros(1, 1, 1, count, dtype=dtype, device=rank.device)
    return _Message(collective, x_1BTD, ranks)


def _once(rank: Rank, message: _Message | None) -> float:
    """A first look at how long a sum takes; the same on all ranks."""
    seconds = 0.0
    if message is not None:
        for _ in range(2):  # the first one also makes room for the message
            seconds = _whole(rank, message, 1)
    return max(*gathered(rank, seconds), 1e-7)


def _rounds(
    rank: Rank, message: _Message | None, once: float, budget: Budget, deadline: float
) -> list[tuple[float, float, float]]:
    in_a_row = max(1, min(_MOST_IN_A_ROW, round(_LEAST_SECONDS / once)))
    return [
        _one(rank, message, in_a_row)
        for _ in budget.rounds(deadline, "sums")
        if message is not None
    ]


def _one(rank: Rank, message: _Message, in_a_row: int) -> tuple[float, float, float]:
    whole = _whole(rank, message, in_a_row)
    if rank.device.type == "cuda":
        return whole, 0.0, 0.0
    begin = wait = 0.0
    for _ in range(in_a_row):
        start = time.perf_counter()
        pending = message.collective.begin(message.x_1BTD)
        begun = time.perf_counter()
        _spend(2 * whole)
        awaited = time.perf_counter()
        pending.wait()
        begin, wait = begin + begun - start, wait + time.perf_counter() - awaited
    return whole, begin / in_a_row, wait / in_a_row


def _whole(rank: Rank, message: _Message, in_a_row: int) -> float:
    message.collective.begin(message.x_1BTD).wait()  # so all ranks are here
    start = now(rank)
    for _ in range(in_a_row):
        message.collective.begin(message.x_1BTD).wait()
    return (now(rank) - start) / in_a_row


def _spend(seconds: float) -> None:
    """Compute nothing for a while, without leaving the core to others."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _median(
    rank: Rank, nbytes: int, ranks: int, samples: Sequence[tuple[float, float, float]]
) -> SumTime:
    return SumTime(nbytes, ranks, *_medians(rank, samples))


def _medians(rank: Rank, rows: Sequence[tuple[float, ...]]) -> Iterator[float]:
    """Of each column over the rounds, of which the slowest rank counts; some may have none."""
    of_ranks = [found for found in gathered(rank, rows) if found]
    slowest = [tuple(map(max, zip(*row, strict=True))) for row in zip(*of_ranks, strict=True)]
    return map(statistics.median, zip(*slowest, strict=True))


def _beside(
    rank: Rank,
    dtype: torch.dtype,
    collective: Collective,
    alone: SumTime,
    budget: Budget,
    until: float,
) -> BesideTimes:
    product = Workbench(rank.device, dtype).product(*_BESIDE_PRODUCT)
    message = _message(rank, dtype, collective, alone.nbytes, alone.ranks)
    assert message is not None
    with torch.no_grad():
        product()
        once = max(gathered(rank, _computed(rank, product, 8))) / 8
        counts = [max(1, round(share * alone.whole / once)) for share in (_LONGER, _SHORTER)]
        rows: list[tuple[float, ...]] = []
        for _ in budget.rounds(until, "sums beside compute"):
            row: list[float] = []
            for count in counts:
                barrier(rank)
                row.append(_computed(rank, product, count))
                barrier(rank)
                row.append(_both(rank, message, product, count))
            rows.append(tuple(row))
    return BesideTimes(alone, *_medians(rank, rows))


def _computed(rank: Rank, product: Callable[[], object], count: int) -> float:
    start = now(rank)
    for _ in range(count):
        product()
    return now(rank) - start


def _both(rank: Rank, message: _Message, product: Callable[[], object], count: int) -> float:
    message.collective.begin(message.x_1BTD).wait()
    start = now(rank)
    pending = message.collective.begin(message.x_1BTD)
    for _ in range(count):
        product()
    pending.wait()
    return now(rank) - start
