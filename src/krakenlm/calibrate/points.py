"""What is measured: which operators at which shapes, on CPUs and on GPUs, and how much fits."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, Self

from krakenlm.config import WiringName
from krakenlm.plan.measured import OperatorName

RESIDENT_BYTES = 4 << 20
"""Weights that are read again and again lie in caches, beyond a core's own."""
_SMALL_HEAD = 1024
"""Widest hidden state for which heads over a vocabulary are measured."""


class Point(NamedTuple):
    """One operator at one shape.

    Attributes:
        operator: as in ``krakenlm.plan.measured``, whose tables its place is a row of.
        place: that row, without its microseconds.
        aligned: widths are multiples of 8.
        resident: weights lie in caches.
        table: points of one operator with other numbers here are tables of their own.
    """

    operator: OperatorName
    place: tuple[int, ...]
    aligned: bool = True
    resident: bool = False
    table: str = ""

    @property
    def flops(self) -> float:
        """Of products and attention; 0 of what only moves bytes."""
        if self.operator == "attention":
            heads, queries, keys, width = self.place
            return 4 * heads * width * (queries * keys - queries * (queries - 1) / 2)
        if self.operator == "gemm":
            m, k, n = self.place
            return 2 * m * k * n
        return 0.0


class Probe(NamedTuple):
    """A small model that the engine runs, for what passes take beyond their operators.

    Attributes:
        wiring: of its layers.
        hidden: width of the stream.
        layers: how many.
        tokens: of its prompt.
    """

    wiring: WiringName
    hidden: int
    layers: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The shapes of a calibration.

    Attributes:
        few_rows: M of single tokens and small batches.
        rows: M of prompts.
        widths: K and N.
        vocabulary: N of the output head.
        resident_widths: K and N of products whose weights lie in caches; empty is none.
        odd_widths: K and N that are no multiples of 8.
        heads: batch times heads.
        queries: of a prompt.
        spans: keys over queries.
        head_widths: of attention.
        odd_head_widths: likewise, no multiples of 8.
        cached: positions that a single query looks at.
        norm_rows: tokens.
        norm_widths: of norms.
        moved: bytes read and written by what only moves them.
        working_sets: MiB of weights that are read again and again.
        messages: bytes of a sum.
        probes: models.
        vocabulary_size: of these.
    """

    few_rows: tuple[int, ...]
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    vocabulary: tuple[int, ...]
    resident_widths: tuple[int, ...]
    odd_widths: tuple[int, ...]
    heads: tuple[int, ...]
    queries: tuple[int, ...]
    spans: tuple[int, ...]
    head_widths: tuple[int, ...]
    odd_head_widths: tuple[int, ...]
    cached: tuple[int, ...]
    norm_rows: tuple[int, ...]
    norm_widths: tuple[int, ...]
    moved: tuple[int, ...]
    working_sets: tuple[int, ...]
    messages: tuple[int, ...]
    probes: tuple[Probe, ...]
    vocabulary_size: int = 50257

    def points(self) -> list[Point]:
        """All operators, table by table."""
        return [*self._products(), *self._attention(), *self._rest()]

    def _products(self) -> Iterator[Point]:
        few, many, widths = self.few_rows, self.rows, self.widths
        narrow = [width for width in widths if width <= _SMALL_HEAD] or widths[:1]
        for table, axes in (
            ("tokens", (few, widths, widths)),
            ("prompts", (many, widths, widths)),
            ("heads", (few, narrow, self.vocabulary)),
        ):
            yield from (Point("gemm", place, table=table) for place in product(*axes))
        resident = self.resident_widths
        for place in product(few, resident, resident):
            yield Point("gemm", place, resident=True)
        for place in product((few[0], *many[1:]), self.odd_widths, self.odd_widths):
            yield Point("gemm", place, aligned=False)

    def _attention(self) -> Iterator[Point]:
        for widths, spans, aligned in (
            (self.head_widths, self.spans, True),
            (self.odd_head_widths, (1,), False),
        ):
            for heads, queries, span, width in product(self.heads, self.queries, spans, widths):
                yield Point("attention", (heads, queries, span * queries, width), aligned)
        for groups, queries, width, keys in product(
            self.heads, (1, 4), self.head_widths, self.cached
        ):
            yield Point("scores", (groups, queries, width, keys))
            yield Point("values", (groups, queries, keys, width))

    def _rest(self) -> Iterator[Point]:
        for place in product(self.norm_rows, self.norm_widths):
            yield Point("norm", place)
            yield Point("rms_norm", place)
        for nbytes in self.moved:
            yield Point("move", (nbytes,))
            yield Point("copy", (nbytes,))
            yield Point("gelu", (nbytes,))
            yield Point("softmax", (nbytes,))

    def weight_bytes(self, element: int) -> int:
        """Of all matrices once."""
        shapes = {p.place[1:] for p in self._products()}
        return element * sum(k * n for k, n in shapes)

    def within(self, seconds: float, flops_per_second: float, weights: float, element: int) -> Self:
        """The same without its largest shapes, until a round fits.

        Args:
            seconds: that a round may take.
            flops_per_second: of the device.
            weights: most bytes of them.
            element: bytes of an element.
        """
        extent = self
        while len(extent.rows) > 2 and extent._seconds(flops_per_second) > seconds:
            extent = dataclasses.replace(
                extent,
                rows=extent.rows[:-1],
                queries=extent.queries[: max(2, len(extent.queries) - 1)],
            )
        while len(extent.widths) > 2 and (
            extent._seconds(flops_per_second) > seconds or extent.weight_bytes(element) > weights
        ):
            extent = dataclasses.replace(
                extent,
                widths=extent.widths[:-1],
                vocabulary=extent.vocabulary[: max(1, len(extent.vocabulary) - 1)],
            )
        return extent

    def _seconds(self, flops_per_second: float) -> float:
        return sum(point.flops for point in self.points()) / flops_per_second


_KIB, _MIB = 1 << 10, 1 << 20

CPU = Extent(
    few_rows=(1, 2, 4, 8),
    rows=(8, 32, 128, 256, 512, 1024),
    widths=(128, 256, 512, 1024, 2048, 4096),
    vocabulary=(8192, 32768),
    resident_widths=(128, 256, 512, 1024),
    odd_widths=(122, 413, 1357),
    heads=(1, 4, 16),
    queries=(32, 128, 256, 512, 1024),
    spans=(1, 2),
    head_widths=(64, 128),
    odd_head_widths=(61, 113),
    cached=(128, 512, 2048),
    norm_rows=(1, 8, 64, 256, 1024),
    norm_widths=(128, 512, 1024, 2048),
    moved=(64, _KIB, 8 * _KIB, 64 * _KIB, 512 * _KIB, 2 * _MIB, 8 * _MIB, 64 * _MIB),
    working_sets=(1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96),
    messages=(32, 1 * _KIB, 4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, _MIB, 4 * _MIB),
    probes=(
        Probe("standard", 128, 2, 8),
        Probe("standard", 128, 14, 8),
        Probe("kraken", 192, 6, 64),
        Probe("standard", 224, 2, 32),
        Probe("ladder", 320, 4, 224),
        Probe("standard", 448, 6, 64),
        Probe("lagged", 576, 6, 96),
        Probe("shared", 576, 4, 448),
        Probe("standard", 832, 3, 320),
        Probe("parallel", 832, 3, 768),
        Probe("lagged", 960, 8, 128),
    ),
)
"""Of a core, or of the cores that a rank has."""

GPU = Extent(
    few_rows=(1, 2, 4, 8),
    rows=(8, 64, 128, 256, 512, 1024, 2048, 4096),
    widths=(512, 1024, 2048, 4096, 8192, 16384),
    vocabulary=(16384, 65536),
    resident_widths=(),
    odd_widths=(678, 2516),
    heads=(4, 16, 64),
    queries=(64, 128, 512, 2048),
    spans=(1, 2),
    head_widths=(64, 128),
    odd_head_widths=(113,),
    cached=(128, 512, 2048, 8192),
    norm_rows=(1, 8, 128, 1024, 4096),
    norm_widths=(512, 2048, 8192),
    moved=(64, 8 * _KIB, 64 * _KIB, 512 * _KIB, 4 * _MIB, 32 * _MIB, 256 * _MIB),
    working_sets=(),
    messages=(1 * _KIB, 8 * _KIB, 64 * _KIB, 512 * _KIB, 4 * _MIB, 32 * _MIB),
    probes=(
        Probe("standard", 256, 4, 8),
        Probe("standard", 256, 16, 8),
        Probe("parallel", 512, 12, 8),
        Probe("standard", 4096, 4, 1024),
    ),
)
"""Of a GPU."""
