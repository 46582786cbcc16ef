"""How long one device takes for an operator.

Formulas are rooflines: the longer of computing and of moving bytes, and a kernel's own time on top.
Products and attention come in tiles, and tiles in waves over the multiprocessors; a wave that is
not full takes as long as a full one. Where a profile has measured tables, they correct the formulas
(``krakenlm.plan.interpolation``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from krakenlm.errors import ConfigError, KrakenError
from krakenlm.plan.constants import (
    SCHEMA_VERSION,
    Constant,
    Table,
    check_positive,
    check_rows,
    names,
    read_committed,
    unknown,
)
from krakenlm.plan.interpolation import Estimate, Scattered, ratios
from krakenlm.plan.program import Operator

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""Bytes of an element."""
_ATTENTION_TILE = 64  # rows; fused kernels take 128, two at a time on a multiprocessor
# Where tiles are few their sums are split among multiprocessors, which costs some of each. The
# measured A100 products are all met without it.
_MOST_SPLITS, _SPLIT_ROWS, _SPLIT_KEEPS = 8, 512, 0.95
_WIDTHS = {"gemm": 4, "attention": 5, "norm": 3, "move": 2}
"""Numbers in a row of each table, microseconds included."""


@dataclass(frozen=True, kw_only=True)
class OperatorTable(Table):
    """Measured times of one kind of operator.

    Attributes:
        operator: gemm, with rows of M, K, N and microseconds; attention: batch times heads,
            queries, keys, head width; norm: rows, width; move: bytes read and written.
        dtype: of what is computed with.
    """

    operator: Literal["gemm", "attention", "norm", "move"]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One device: what it has, and what of that is reached.

    Attributes:
        kind: tells these files from those of links.
        schema_version: of this layout.
        name: as ``--device`` takes it.
        title: for people.
        processor: cpu or gpu: on a CPU sums take compute time as well.
        usual_link: the link between such devices where none is named.
        memory_gib: of one device.
        reserved_gib: of that, what the libraries take before any weight is there.
        peak_tflop_per_second: by type, of products with float32 sums.
        bandwidth_gb_per_second: of its memory.
        gemm_share_of_peak: that large products reach.
        attention_share_of_peak: that fused attention reaches on long prompts.
        share_of_bandwidth: that is reached where bytes are the bottleneck.
        multiprocessors: a wave has so many tiles; 1 for a core.
        gemm_tile_elements: edge of a product's tile; 1 where there are no tiles.
        kernel_us: of each kernel, beside its work.
        launch_us: of the host, for each kernel that is not part of a captured graph.
        fused_head_dim: widest head that fused attention takes; wider ones write their scores out.
        unaligned_gemm_slowdown: of products whose K or N is no multiple of 8, in two-byte types.
        compute_slowdown_beside_allreduce: how much longer compute takes meanwhile.
        allreduce_slowdown_beside_compute: and the other way round.
        tables: measured times.
    """

    kind: Literal["device"]
    schema_version: int
    name: str
    title: str
    processor: Literal["cpu", "gpu"]
    usual_link: str
    memory_gib: Constant
    reserved_gib: Constant
    peak_tflop_per_second: dict[str, Constant]
    bandwidth_gb_per_second: Constant
    gemm_share_of_peak: Constant
    attention_share_of_peak: Constant
    share_of_bandwidth: Constant
    multiprocessors: Constant
    gemm_tile_elements: Constant
    kernel_us: Constant
    launch_us: Constant
    fused_head_dim: Constant
    unaligned_gemm_slowdown: Constant
    compute_slowdown_beside_allreduce: Constant
    allreduce_slowdown_beside_compute: Constant
    tables: tuple[OperatorTable, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ConfigError(
                f"schema_version={self.schema_version}: this krakenlm reads {SCHEMA_VERSION}"
            )
        constants = {k: v for k, v in vars(self).items() if isinstance(v, Constant)}
        free = {name: constants.pop(name) for name in ("reserved_gib", "kernel_us", "launch_us")}
        peaks = {f"peak_tflop_per_second.{k}": v for k, v in self.peak_tflop_per_second.items()}
        check_positive({**constants, **peaks})
        check_positive(free, may_be_zero=True)
        for index, table in enumerate(self.tables):
            check_rows(table, _WIDTHS[table.operator], f"tables[{index}]")

    @classmethod
    def named(cls, name: str) -> "DeviceProfile":
        """A committed profile.

        Raises:
            KrakenError: there is none of that name.
        """
        if name not in names("devices"):
            raise unknown("--device", name, names("devices"))
        return read_committed(cls, "devices", name)

    @property
    def usable_bytes(self) -> float:
        """For weights, cache and buffers."""
        return (self.memory_gib.value - self.reserved_gib.value) * 2**30

    def costs(self, dtype: str) -> "OperatorCosts":
        """Times of operators on this device.

        Raises:
            KrakenError: the profile has no peak for the type.
        """
        if dtype not in self.peak_tflop_per_second:
            known = ", ".join(self.peak_tflop_per_second)
            raise KrakenError(f"--dtype {dtype}: {self.name} has {known}")
        return OperatorCosts(self, dtype)


class OperatorCosts:
    """Times of operators on one device, in one type."""

    def __init__(self, device: DeviceProfile, dtype: str) -> None:
        self._device = device
        self._dtype = dtype
        self._element = DTYPES[dtype]
        self._peak = device.peak_tflop_per_second[dtype].value * 1e12
        self._rate = device.bandwidth_gb_per_second.value * 1e9 * device.share_of_bandwidth.value
        self._kernel = device.kernel_us.value * 1e-6
        self._known: dict[Operator, Estimate] = {}

    def __call__(self, operator: Operator) -> Estimate:
        """Seconds of one operator."""
        estimate = self._known.get(operator)
        if estimate is None:
            estimate = self._known[operator] = self._estimate(operator)
        return estimate

    def _estimate(self, operator: Operator) -> Estimate:
        if operator.kind == "gemm":
            groups, m, k, n = operator.shape
            formula = self._gemm(groups, m, k, n)
            return self._gemm_table.correct((m, k, groups * n), formula)
        if operator.kind == "attention":
            batch, heads, groups, queries, keys, width = operator.shape
            formula = self._attention(batch * heads, groups / heads, queries, keys, width)
            return self._attention_table.correct((batch * heads, queries, keys, width), formula)
        formula = self._moved(operator.nbytes)
        if operator.kind == "norm":
            return self._norm_table.correct(operator.shape, formula)
        return self._move_table.correct((max(operator.nbytes, 1),), formula)

    def _moved(self, nbytes: float) -> float:
        return nbytes / self._rate + self._kernel

    def _gemm(self, groups: float, m: float, k: float, n: float) -> float:
        device = self._device
        tile = device.gemm_tile_elements.value
        tiles = groups * math.ceil(m / tile) * math.ceil(n / tile)
        splits = range(1, min(_MOST_SPLITS, int(k // _SPLIT_ROWS)) + 1)
        full = max((self._full(tiles * s) * _SPLIT_KEEPS ** (s - 1) for s in splits), default=0.0)
        full = max(full, self._full(tiles))
        reached = self._peak * device.gemm_share_of_peak.value * full
        if self._element == 2 and (k % 8 or n % 8):
            reached /= device.unaligned_gemm_slowdown.value
        # Tiles are computed whole, but for the rows of a prompt shorter than one: those are few
        # enough for the bytes of the weights to decide.
        nbytes = groups * (m * k + k * n + m * n) * self._element
        return max(2 * groups * m * k * n / reached, nbytes / self._rate) + self._kernel

    def _attention(
        self, heads: float, keys_per_query_head: float, queries: float, keys: float, width: float
    ) -> float:
        device = self._device
        nbytes = heads * (2 * queries + 2 * keys_per_query_head * keys) * width * self._element
        if width > device.fused_head_dim.value:
            scores = heads * queries * keys
            flops = 4 * scores * width  # what is masked as well
            unfused = max(
                flops / (self._peak * device.gemm_share_of_peak.value),
                (nbytes + 4 * scores * self._element) / self._rate,
            )
            return unfused + 3 * self._kernel
        hidden = queries * (queries - 1) / 2 if queries > 1 else 0
        padded = math.ceil(width / 32) * 32 if device.multiprocessors.value > 1 else width
        flops = 4 * heads * padded * (queries * keys - hidden)
        tiles = heads * math.ceil(queries / _ATTENTION_TILE)
        reached = self._peak * device.attention_share_of_peak.value * self._full(tiles)
        return max(flops / reached, nbytes / self._rate) + self._kernel

    def _full(self, tiles: float) -> float:
        """How full the waves are that so many tiles make."""
        size = self._device.multiprocessors.value
        return tiles / (math.ceil(tiles / size) * size)

    def _table(self, operator: str, formula: object) -> Scattered:
        rows = [
            row
            for table in self._device.tables
            if table.operator == operator and table.dtype == self._dtype
            for row in table.rows_us
        ]
        return Scattered(ratios(rows, formula))  # type: ignore[arg-type]

    @cached_property
    def _gemm_table(self) -> Scattered:
        return self._table("gemm", lambda at: self._gemm(1, *at))

    @cached_property
    def _attention_table(self) -> Scattered:
        return self._table("attention", lambda at: self._attention(at[0], 1.0, *at[1:]))

    @cached_property
    def _norm_table(self) -> Scattered:
        def formula(at: Sequence[float]) -> float:
            return self._moved(2 * at[0] * at[1] * self._element)

        return self._table("norm", formula)

    @cached_property
    def _move_table(self) -> Scattered:
        return self._table("move", lambda at: self._moved(at[0]))
