"""What a device profile holds of measurements: operators, passes, weights in caches."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from krakenlm.errors import ConfigError
from krakenlm.plan.constants import Constant, Table, check_positive, check_rows

OperatorName = Literal[
    "gemm",
    "scores",
    "values",
    "attention",
    "norm",
    "rms_norm",
    "gelu",
    "softmax",
    "copy",
    "move",
]
_WIDTHS: dict[OperatorName, int] = {
    "gemm": 4,
    "scores": 5,
    "values": 5,
    "attention": 5,
    "norm": 3,
    "rms_norm": 3,
    "gelu": 2,
    "softmax": 2,
    "copy": 2,
    "move": 2,
}
"""Numbers in a row of each table, microseconds included."""


@dataclass(frozen=True, kw_only=True)
class OperatorTable(Table):
    """Measured times of one kind of operator.

    Attributes:
        operator: gemm, with rows of M, K, N and microseconds; scores and values, the products of a
            single query's attention: heads, M, K, N; attention: batch times heads, queries, keys,
            head width; norm and rms_norm: rows, width; gelu, softmax, copy (of what does not lie
            densely) and move: bytes read and written.
        dtype: of what is computed with.
        aligned: K and N, or the head's width, are multiples of 8.
        resident: of products whose weights lie in the processor's caches.
    """

    operator: OperatorName
    dtype: str
    aligned: bool = True
    resident: bool = False

    def check(self, name: str) -> None:
        """Refuse rows that are none.

        Raises:
            ConfigError: names the row.
        """
        check_rows(self, _WIDTHS[self.operator], name)


@dataclass(frozen=True, kw_only=True)
class PassCosts:
    """What passes of the engine take beyond their operators, each timed alone.

    Attributes:
        operators_slowdown: operators one after the other over the same alone.
        operator_us: of each operator, for the Python and the views around it.
        pass_us: of a pass, for what is done once.
    """

    operators_slowdown: Constant
    operator_us: Constant
    pass_us: Constant

    def check(self, name: str) -> None:
        """Refuse numbers that no pass has.

        Raises:
            ConfigError: names the constant.
        """
        check_positive({f"{name}.operators_slowdown": self.operators_slowdown})
        rest = {"operator_us": self.operator_us, "pass_us": self.pass_us}
        check_positive({f"{name}.{k}": v for k, v in rest.items()}, may_be_zero=True)


@dataclass(frozen=True, kw_only=True)
class CacheMisses:
    """How much of the weights comes from memory, by how much a pass reads in all.

    Attributes:
        source: how that was measured.
        rows_mib_share: MiB that each rank reads, and the share that comes from memory, 0 to 1; MiB
            ascend.
    """

    source: str
    rows_mib_share: tuple[tuple[float, ...], ...]

    def check(self, name: str) -> None:
        """Refuse rows that are no shares.

        Raises:
            ConfigError: names the row.
        """
        before = 0.0
        for index, row in enumerate(self.rows_mib_share):
            if len(row) != 2 or row[0] <= before or not 0.0 <= row[1] <= 1.0:
                raise ConfigError(
                    f"{name}.rows_mib_share[{index}]={list(row)}: needs MiB that ascend, and 0 to 1"
                )
            before = row[0]

    def share(self, nbytes: float) -> float:
        """Of a pass that reads so many bytes."""
        return _interpolated(self.rows_mib_share, nbytes / 2**20)


def _interpolated(rows: Sequence[Sequence[float]], at: float) -> float:
    """Linear in the logarithm of the first column; beyond the ends as there."""
    after = bisect_right([row[0] for row in rows], at)
    if after == 0 or after == len(rows):
        return rows[min(after, len(rows) - 1)][1]
    (x0, y0), (x1, y1) = rows[after - 1 : after + 1]
    return y0 + (y1 - y0) * math.log(at / x0) / math.log(x1 / x0)
