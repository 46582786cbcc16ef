"""What is the middle of repeated measurements, and how far do they lie about it?"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Middle and tenths: for the many repetitions within one run."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        """Median, 10th and 90th percentile; needs two values or more."""
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(median=statistics.median(values), p10=tenths[0], p90=tenths[-1])


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Middle, least and most: for a handful of runs or rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a run; needs one or more."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))

    def text(self, digits: int, unit: str = "") -> str:
        """For a table: ``1.72x (1.70–1.81)``; the range is left out where there is none."""
        middle = f"{self.median:.{digits}f}{unit}"
        if self.least == self.most:
            return middle
        return f"{middle} ({self.least:.{digits}f}–{self.most:.{digits}f})"
