"""Operators as the engine runs them, timed at many shapes, round by round on all ranks at once.

Ranks that share a memory slow each other down, so all do the same at the same time, and the slowest
counts. Weights are read from memory as in a pass: each product takes another matrix than
the one before, and between two rounds more is touched than caches hold.

Shape letters: see ``krakenlm.model``.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm.bench.ranks import barrier, gathered
from krakenlm.calibrate.budget import Budget
from krakenlm.calibrate.points import RESIDENT_BYTES, Point
from krakenlm.calibrate.timing import Call, Sample, sample
from krakenlm.model.attention import causal_attention
from krakenlm.model.block_attention import attend_in_blocks
from krakenlm.model.feed_forward import gelu
from krakenlm.model.layers import Norm
from krakenlm.model.packed import PackedMatrix, can_pack
from krakenlm.ranks.launch import Rank

Matrix = Callable[[Tensor], Tensor]
_COPIES_SECONDS, _READ_BYTES_PER_SECOND, _CALL_SECONDS = 0.0005, 25e9, 8e-6
"""There are as many matrices of a shape as a sample of single tokens reads, at this rate."""
_MOST_CALLS = 256
_LEAST_SECONDS = 1e-9
_MOVED_HEADS, _MOVED_WIDTH, _SOFTMAX_WIDTH, _GELU_INPUTS = 8, 64, 512, 128


class Prepared(NamedTuple):
    """A point that can be timed; of two samples the difference counts."""

    point: Point
    sample: Sample
    without: Sample | None = None

    def seconds(self) -> float:
        """Of one call, now."""
        whole = self.sample.seconds()
        return whole if self.without is None else whole - self.without.seconds()


class Workbench:
    """Makes calls of operators on one device, in one type.

    Args:
        device: where they compute.
        dtype: of what.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._pools: dict[tuple[int, int], list[Matrix]] = {}
        self._makers: dict[str, Callable[[tuple[int, ...]], Call]] = {
            "scores": self._scores,
            "values": self._values,
            "attention": self._attention,
            "norm": lambda place: self._norm(place, rms=False),
            "rms_norm": lambda place: self._norm(place, rms=True),
            "move": self._move,
            "copy": self._copy,
            "softmax": self._softmax,
        }

    def prepare(self, point: Point) -> Prepared:
        """Make what a point needs, and find out how often it is called in a row."""
        if point.operator == "gemm":
            return self._product(point)
        if point.operator == "gelu":
            return self._gelu(point)
        call = self._makers[point.operator](point.place)
        return Prepared(point, sample(call, self._device, at_most=_MOST_CALLS))

    def product(self, m: int, k: int, n: int) -> Call:
        """A product that takes another matrix each time."""
        x_1MK = self._random(1, 1, m, k)
        matrices = itertools.cycle(self._pool(k, n))
        return lambda: next(matrices)(x_1MK)

    def reading(self, m: int, k: int, n: int, nbytes: int) -> Prepared:
        """Products with so many bytes of matrices, again and again."""
        count = max(1, round(nbytes / (k * n * self._dtype.itemsize)))
        pool = self._pool(k, n, count)[:count]
        x_1MK, matrices = self._random(1, 1, m, k), itertools.cycle(pool)

        def call() -> Tensor:
            return next(matrices)(x_1MK)

        timed = sample(call, self._device, at_most=count, warm_up=count)
        return Prepared(Point("gemm", (m, k, n), resident=True), timed)

    def _product(self, point: Point) -> Prepared:
        m, k, n = point.place
        if point.resident:
            return self.reading(m, k, n, RESIDENT_BYTES)
        pool = self._pool(k, n)
        at_most = len(pool)
        return Prepared(point, sample(self.product(m, k, n), self._device, at_most=at_most))

    def _pool(self, k: int, n: int, least: int = 2) -> list[Matrix]:
        read = k * n * self._dtype.itemsize / _READ_BYTES_PER_SECOND
        wanted = max(least, math.ceil(_COPIES_SECONDS / (_CALL_SECONDS + read)))
        pool = self._pools.setdefault((k, n), [])
        while len(pool) < wanted:
            pool.append(self._matrix(k, n))
        return pool

    def _matrix(self, k: int, n: int) -> Matrix:
        weight_NK, bias_N = self._random(n, k), self._random(n)
        if can_pack(weight_NK):
            return PackedMatrix(weight_NK, bias_N)
        return lambda x: F.linear(x, weight_NK, bias_N)

    def _gelu(self, point: Point) -> Prepared:
        """GELU alone, or where products apply it on their way out, what it adds to one."""
        (nbytes,) = point.place
        elements = max(nbytes // (2 * self._dtype.itemsize), 1)
        width = min(elements, 1024)
        rows = max(elements // width, 1)
        weight_NK = self._random(width, _GELU_INPUTS)
        if not can_pack(weight_NK):
            x = self._random(rows, width)
            return Prepared(point, self._sample(lambda: gelu(x)))
        plain, with_gelu = PackedMatrix(weight_NK), PackedMatrix(weight_NK, gelu="tanh")
        x = self._random(rows, _GELU_INPUTS)
        return Prepared(point, self._sample(lambda: with_gelu(x)), self._sample(lambda: plain(x)))

    def _sample(self, call: Call) -> Sample:
        return sample(call, self._device, at_most=_MOST_CALLS)

    # A session looks at all of its cache wherever a product would copy what does not lie densely.

    def _scores(self, place: tuple[int, ...]) -> Call:
        groups, rows, width, keys = place
        q_BGRE, k_BGPE = self._random(1, groups, rows, width), self._random(1, groups, keys, width)
        return lambda: q_BGRE @ k_BGPE.transpose(-1, -2)

    def _values(self, place: tuple[int, ...]) -> Call:
        groups, rows, keys, width = place
        p_BGRP, v_BGPE = self._random(1, groups, rows, keys), self._random(1, groups, keys, width)
        return lambda: p_BGRP @ v_BGPE

    def _attention(self, place: tuple[int, ...]) -> Call:
        heads, queries, keys, width = place
        q_BHTE = self._random(1, queries, heads, width).transpose(1, 2)
        k_BGPE, v_BGPE = (self._cache(heads, keys, width) for _ in range(2))
        scaling = width**-0.5
        if self._device.type == "cpu":
            return lambda: attend_in_blocks(q_BHTE, k_BGPE, v_BGPE, scaling)
        return lambda: causal_attention(q_BHTE, k_BGPE, v_BGPE, scaling=scaling)

    def _cache(self, groups: int, keys: int, width: int) -> Tensor:
        """Of a KV cache with room for an answer, the positions that are looked at."""
        return self._random(1, groups, keys + 128, width)[:, :, :keys]

    def _norm(self, place: tuple[int, ...], *, rms: bool) -> Call:
        rows, width = place
        norm = Norm(1, width, 1e-5, bias=True, rms=rms)
        norm.reset_parameters()
        norm = norm.to(self._device, self._dtype).requires_grad_(False)
        x_SBTD = self._random(1, 1, rows, width)
        return lambda: norm(x_SBTD)

    def _move(self, place: tuple[int, ...]) -> Call:
        count = max(place[0] // (3 * self._dtype.itemsize), 1)
        x, y = self._random(count), self._random(count)
        return lambda: x + y

    def _copy(self, place: tuple[int, ...]) -> Call:
        """Heads side by side, into a cache where each has its own place."""
        elements = max(place[0] // (2 * self._dtype.itemsize), 1)
        width = min(elements, _MOVED_WIDTH)
        heads = min(elements // width, _MOVED_HEADS)
        tokens = elements // (width * heads)
        k_BGTE = self._random(1, tokens, heads, width).transpose(1, 2)
        cache_BGPE = self._cache(heads, tokens, width)
        return lambda: cache_BGPE.copy_(k_BGTE)

    def _softmax(self, place: tuple[int, ...]) -> Call:
        elements = max(place[0] // (2 * self._dtype.itemsize), 1)
        width = min(elements, _SOFTMAX_WIDTH)
        x = self._random(max(elements // width, 1), width)
        return lambda: x.softmax(-1)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device, dtype=self._dtype)


@torch.no_grad()
def time_points(
    rank: Rank, prepared: Sequence[Prepared], budget: Budget, *, until: float, what: str
) -> list[float]:
    """Seconds of each point: the slowest rank's median over rounds.

    Not the median of the rounds' slowest, which is longer by what noise differs between ranks: a
    pass that computes without waiting does not pay for that.
    """
    samples: list[list[float]] = [[] for _ in prepared]
    for _ in budget.rounds(until, what):
        for each, found in zip(prepared, samples, strict=True):
            barrier(rank)
            found.append(each.seconds())
            budget.tell(what)
    medians = gathered(rank, [statistics.median(found) for found in samples])
    return [max(*of_ranks, _LEAST_SECONDS) for of_ranks in zip(*medians, strict=True)]


def flops_per_second(rank: Rank, dtype: torch.dtype) -> float:
    """A first look at how fast a device multiplies, on its slowest rank."""
    bench = Workbench(rank.device, dtype)
    m, k, n = (256, 512, 512) if rank.device.type == "cpu" else (2048, 4096, 4096)
    with torch.no_grad():
        timed = bench.prepare(Point("gemm", (m, k, n)))
        barrier(rank)
        seconds = min(timed.seconds() for _ in range(3))
    return 2 * m * k * n / max(gathered(rank, seconds))
