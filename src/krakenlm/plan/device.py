"""How long one device takes for an operator.

Formulas are rooflines: the longer of computing and of moving bytes, and a kernel's own time on top.
Products and attention come in tiles, and tiles in waves over the multiprocessors; a wave that is
not full takes as long as a full one. Where a profile has measured tables, they correct the formulas
(``krakenlm.plan.interpolation``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from krakenlm.errors import ConfigError, KrakenError
from krakenlm.plan.constants import (
    SCHEMA_VERSION,
    Constant,
    check_positive,
    names,
    read_committed,
    unknown,
)
from krakenlm.plan.interpolation import Estimate, Nearest, ratios
from krakenlm.plan.measured import CacheMisses, OperatorName, OperatorTable, PassCosts
from krakenlm.plan.program import Operator

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""Bytes of an element."""
_ATTENTION_TILE = 64  # rows; fused kernels take 128, two at a time on a multiprocessor
# Where tiles are few their sums are split among multiprocessors, which costs some of each. The
# measured A100 products are all met without it.
_MOST_SPLITS, _SPLIT_ROWS, _SPLIT_KEEPS = 8, 512, 0.95


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
        eager: what passes of the engine take beyond their operators where these are launched one
            by one; None leaves it to launch_us.
        captured: the same of passes that are replayed.
        misses: which weights lie in caches; None is none of them.
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
    eager: PassCosts | None = None
    captured: PassCosts | None = None
    misses: CacheMisses | None = None

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
            table.check(f"tables[{index}]")
        for name in ("eager", "captured", "misses"):
            measured = getattr(self, name)
            if measured is not None:
                measured.check(name)

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

    def costs(self, dtype: str, read_bytes: float = math.inf) -> "OperatorCosts":
        """Times of operators on this device.

        Args:
            dtype: what is computed with.
            read_bytes: what a pass reads in all; of little enough some stays in caches until the
                next pass.

        Raises:
            KrakenError: the profile has no peak for the type.
        """
        if dtype not in self.peak_tflop_per_second:
            known = ", ".join(self.peak_tflop_per_second)
            raise KrakenError(f"--dtype {dtype}: {self.name} has {known}")
        misses = 1.0 if self.misses is None else self.misses.share(read_bytes)
        return OperatorCosts(self, dtype, misses)


class OperatorCosts:
    """Times of operators on one device, in one type.

    Args:
        device: the device.
        dtype: the type.
        misses: share of the weights that comes from memory.
    """

    def __init__(self, device: DeviceProfile, dtype: str, misses: float = 1.0) -> None:
        self._device = device
        self._dtype = dtype
        self._misses = misses
        self._element = DTYPES[dtype]
        self._peak = device.peak_tflop_per_second[dtype].value * 1e12
        self._rate = device.bandwidth_gb_per_second.value * 1e9 * device.share_of_bandwidth.value
        self._kernel = device.kernel_us.value * 1e-6
        self._known: dict[Operator, Estimate] = {}
        self._tables: dict[tuple[OperatorName, bool, bool], Nearest] = {}

    def __call__(self, operator: Operator) -> Estimate:
        """Seconds of one operator."""
        estimate = self._known.get(operator)
        if estimate is None:
            estimate = self._known[operator] = self._estimate(operator)
        return estimate

    def _estimate(self, operator: Operator) -> Estimate:
        kind = operator.kind
        if kind == "gemm":
            return self._product(operator)
        if kind == "attention":
            batch, heads, groups, queries, keys, width = operator.shape
            formula = self._attention(batch * heads, groups / heads, queries, keys, width)
            place = (batch * heads, queries, keys, width)
            return self._corrected("attention", place, formula, aligned=width % 8 == 0)
        if kind in ("norm", "rms_norm"):
            return self._corrected(kind, operator.shape, self._moved(operator.nbytes))
        formula = self._moved(operator.nbytes)
        known = kind if self._table(kind) else "move"
        return self._corrected(known, (max(operator.nbytes, 1),), formula)

    def _product(self, operator: Operator) -> Estimate:
        groups, m, k, n = operator.shape
        formula = self._gemm(groups, m, k, n)
        if operator.part == "attention":  # of a single query, which is not fused
            name: OperatorName = "scores" if n > k else "values"
            if self._table(name):
                return self._corrected(name, (groups, m, k, n), formula)
        elif groups > 1 and self._device.processor == "cpu":  # one after the other
            one = self._linear(m, k, n, self._gemm(1, m, k, n))
            return Estimate(groups * one.seconds, one.from_table)
        return self._linear(m, k, groups * n, formula)

    def _linear(self, m: int, k: int, n: int, formula: float) -> Estimate:
        aligned = not (k % 8 or n % 8)
        cold = self._corrected("gemm", (m, k, n), formula, aligned=aligned)
        resident = self._table("gemm", resident=True)
        if self._misses == 1.0 or not resident.reaches(0, m):
            return cold
        warm = resident.correct((m, k, n), formula).seconds
        seconds = min(warm, cold.seconds)
        return cold._replace(seconds=seconds + self._misses * (cold.seconds - seconds))

    def _corrected(
        self, name: OperatorName, place: Sequence[float], formula: float, *, aligned: bool = True
    ) -> Estimate:
        place, table = coordinates(name, place), self._table(name, aligned=aligned)
        # An odd edge of something large is not what odd widths were measured for.
        if not table or not (aligned or table.is_near(place)):
            table = self._table(name, aligned=not aligned) or table
        return table.correct(place, formula)

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

    def _table(
        self, name: OperatorName, *, aligned: bool = True, resident: bool = False
    ) -> Nearest:
        key = name, aligned, resident
        if key not in self._tables:
            formula = self._formula(name)
            measured = [
                ratios(table.rows_us, formula)
                for table in self._device.tables
                if table.dtype == self._dtype
                and (table.operator, table.aligned, table.resident) == key
            ]
            self._tables[key] = Nearest(
                [[(coordinates(name, at), ratio) for at, ratio in points] for points in measured]
            )
        return self._tables[key]

    def _formula(self, name: OperatorName) -> Callable[[Sequence[float]], float]:
        """Seconds by the coordinates of a table's rows."""
        if name == "gemm":
            return lambda at: self._gemm(1, *at)
        if name in ("scores", "values"):
            return lambda at: self._gemm(*at)
        if name == "attention":
            return lambda at: self._attention(at[0], 1.0, *at[1:])
        if name in ("norm", "rms_norm"):
            return lambda at: self._moved(2 * at[0] * at[1] * self._element)
        return lambda at: self._moved(at[0])


def coordinates(name: OperatorName, place: Sequence[float]) -> Sequence[float]:
    """Where an operator lies among those measured: keys count in multiples of the queries."""
    if name != "attention":
        return place
    heads, queries, keys, width = place
    return heads, queries, keys / queries, width
