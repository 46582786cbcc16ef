"""Measured points correct a formula: it has the right shape, they have the right height.

At each point the logarithm of measured over formula is known. Between points it is interpolated, in
the logarithms of the coordinates, and multiplied with the formula. So a measured point is met
exactly. Beyond scattered points the formula stands alone; beyond the edge of a grid or a series it
is as far off as there.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple, Protocol

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


Points = Sequence[tuple[Sequence[float], float]]
"""Each one's coordinates, all positive, and what was measured over what the formula says."""


class Correction(Protocol):
    """What some measured points say of a formula."""

    def correct(self, place: Sequence[float], formula: float) -> Estimate:
        """The formula's seconds at a place, corrected."""
        ...

    def distance(self, place: Sequence[float]) -> float:
        """How far the place lies from what was measured, in logarithms; 0 is within."""
        ...


def correction(points: Points) -> Correction:
    """Points that form a whole grid are interpolated along its axes, others by their distance."""
    axes = [sorted({place[axis] for place, _ in points}) for axis in range(len(points[0][0]))]
    if len(points) == math.prod(map(len, axes)) == len({tuple(place) for place, _ in points}):
        return Grid(points)
    return Scattered(points)


class Nearest:
    """Several sets of points: the one that lies nearest to a place speaks for it."""

    def __init__(self, sets: Sequence[Points]) -> None:
        self._corrections = [correction(points) for points in sets if points]
        self._most = [
            [max(column) for column in zip(*(place for place, _ in points), strict=True)]
            for points in sets
            if points
        ]

    def __bool__(self) -> bool:
        return bool(self._corrections)

    def correct(self, place: Sequence[float], formula: float) -> Estimate:
        """The formula's seconds at a place, corrected."""
        if not self._corrections or formula <= 0.0:
            return Estimate(formula, from_table=False)
        return min(self._corrections, key=lambda c: c.distance(place)).correct(place, formula)

    def is_near(self, place: Sequence[float]) -> bool:
        """Whether something was measured within a factor of 2."""
        return any(c.distance(place) <= NEAR for c in self._corrections)

    def reaches(self, axis: int, coordinate: float) -> bool:
        """Whether something was measured at so much of one coordinate, or more of it."""
        return any(coordinate <= most[axis] for most in self._most)


class Grid:
    """Points on every crossing of some coordinates, between which each axis is a straight line.

    Args:
        points: of all crossings.
    """

    def __init__(self, points: Points) -> None:
        self._ratios = {tuple(map(math.log, place)): math.log(ratio) for place, ratio in points}
        axes = range(len(points[0][0]))
        self._axes = [sorted({place[axis] for place in self._ratios}) for axis in axes]

    def correct(self, place: Sequence[float], formula: float) -> Estimate:
        """The formula's seconds at a place, corrected."""
        near = self.distance(place) <= NEAR
        ends = [_between(math.log(c), axis) for c, axis in zip(place, self._axes, strict=True)]
        ratio = 0.0
        for corner in product(*ends):
            ratio += (
                math.prod(weight for _, weight in corner)
                * self._ratios[tuple(at for at, _ in corner)]
            )
        return Estimate(formula * math.exp(ratio), from_table=near)

    def distance(self, place: Sequence[float]) -> float:
        """How far the place lies outside, in logarithms."""
        here = [math.log(c) for c in place]
        within = [min(max(c, a[0]), a[-1]) for c, a in zip(here, self._axes, strict=True)]
        return math.dist(here, within)


def _between(here: float, axis: Sequence[float]) -> list[tuple[float, float]]:
    """The places of an axis on both sides of one, with weights; at an end, that end alone."""
    after = bisect_right(axis, here)
    if after == 0 or after == len(axis):
        return [(axis[min(after, len(axis) - 1)], 1.0)]
    low, high = axis[after - 1 : after + 1]
    share = (here - low) / (high - low)
    return [(low, 1.0 - share), (high, share)]


class Scattered:
    """Points anywhere in several dimensions, weighted by the inverse square of their distance.

    Args:
        points: where measured.
    """

    def __init__(self, points: Points) -> None:
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

    def distance(self, place: Sequence[float]) -> float:
        """How far the nearest point is, in logarithms."""
        here = [math.log(c) for c in place]
        return min(math.dist(here, there) for there, _ in self._points)


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
