"""Measured points correct a formula: it has the right shape, they have the right height.

At each point the logarithm of measured over formula is known. Between points it is interpolated, in
the logarithms of the coordinates, and multiplied with the formula. So a measured point is met
exactly, and what lies beyond the points goes over into the formula.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

REACH = math.log(4.0)
"""Beyond a factor of 4 from the nearest point nothing is left of it."""
NEAR = math.log(2.0)
"""Up to a factor of 2 from the nearest point an estimate counts as measured."""


class Estimate(NamedTuple):
    """A time, and where it comes from.

    Attributes:
        seconds: the time.
        from_table: measured points are near; otherwise a formula says it.
    """

    seconds: float
    from_table: bool


class Scattered:
    """Points anywhere in several dimensions, weighted by the inverse square of their distance.

    Args:
        points: each one's coordinates, all of them positive, and what was measured over what the
            formula says.
    """

    def __init__(self, points: Sequence[tuple[Sequence[float], float]]) -> None:
        self._points = [([math.log(c) for c in place], math.log(ratio)) for place, ratio in points]

    def correct(self, place: Sequence[float], formula: float) -> Estimate:
        """The formula's seconds at a place, corrected."""
        if not self._points or formula <= 0.0:
            return Estimate(formula, from_table=False)
        here = [math.log(c) for c in place]
        distances = [math.dist(here, there) for there, _ in self._points]
        nearest = min(distances)
        if nearest < 1e-9:
            exact = self._points[distances.index(nearest)][1]
            return Estimate(formula * math.exp(exact), from_table=True)
        if nearest >= REACH:
            return Estimate(formula, from_table=False)
        weights = [d**-2 if d < REACH else 0.0 for d in distances]
        mean = sum(w * r for w, (_, r) in zip(weights, self._points, strict=True)) / sum(weights)
        faded = mean * (1.0 - (nearest / REACH) ** 2)
        return Estimate(formula * math.exp(faded), from_table=nearest <= NEAR)


class Series:
    """Points along one dimension; beyond the first and the last the ratio stays what it is there.

    Args:
        points: place, positive, and what was measured over what the formula says.
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._points = sorted((math.log(place), math.log(ratio)) for place, ratio in points)

    def correct(self, place: float, formula: float) -> Estimate:
        """The formula's seconds at a place, corrected."""
        here = math.log(place)
        places = [p for p, _ in self._points]
        after = bisect_right(places, here)
        if after == 0 or after == len(places):
            edge, ratio = self._points[min(after, len(places) - 1)]
            near = abs(here - edge) <= NEAR
            return Estimate(formula * math.exp(ratio), from_table=near)
        (x0, y0), (x1, y1) = self._points[after - 1 : after + 1]
        ratio = y0 + (y1 - y0) * (here - x0) / (x1 - x0)
        return Estimate(formula * math.exp(ratio), from_table=True)


def ratios(
    rows: Sequence[Sequence[float]], formula: Callable[[Sequence[float]], float]
) -> list[tuple[Sequence[float], float]]:
    """Of rows that end in measured microseconds, the coordinates and measured over formula."""
    return [(row[:-1], row[-1] * 1e-6 / formula(row[:-1])) for row in rows]
