"""How long measuring may take: rounds go on until their share of the time is used up."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from krakenlm.bench.ranks import gathered
from krakenlm.ranks.launch import Rank

Clock = Callable[[], float]


class Elapsed(NamedTuple):
    """What rank 0 says of its progress.

    Attributes:
        seconds: since measuring began.
        what: is being measured.
    """

    seconds: float
    what: str


class Budget:
    """The time of one calibration, by rank 0's clock.

    Args:
        rank: this rank; all of them go through the same rounds.
        seconds: that there are.
        clock: what tells the time.
    """

    _BETWEEN_WORDS = 0.2

    def __init__(self, rank: Rank, seconds: float, clock: Clock = time.perf_counter) -> None:
        self._rank = rank
        self._clock = clock
        self._start = clock()
        self._said = float("-inf")
        self.seconds = seconds

    def elapsed(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._start

    def rounds(self, until: float, what: str, *, least: int = 1) -> Iterator[int]:
        """Count rounds until so many seconds are over, and stop before a round that would not fit.

        Args:
            until: seconds since the budget was made.
            what: is measured, for people.
            least: rounds, even where there is no time for them.
        """
        longest = 0.0
        for number in range(1_000_000):
            begun = self.elapsed()
            is_over = number >= least and begun + longest > until
            if gathered(self._rank, is_over)[0]:
                return
            yield number
            longest = max(longest, self.elapsed() - begun)
            self.tell(what)

    def tell(self, what: str) -> None:
        """Let people see that it goes on, now and then."""
        now = self.elapsed()
        if self._rank.index == 0 and now - self._said >= self._BETWEEN_WORDS:
            self._said = now
            self._rank.emit(Elapsed(now, what))
