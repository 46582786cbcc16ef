"""What happens with lines, rows and files that cannot be read: refused, or left out and counted?"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from krakenlm.errors import KrakenError

# How many are named; thousands would hide what else is said.
_NAMED = 10


class BadTextError(KrakenError):
    """A part of the text that cannot be read.

    Args:
        found: where it stands, and what is wrong with it.
        advice: what to do.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}: {advice}")
        self.found = found


class NoTextError(BadTextError):
    """A file or a dataset that holds no text at all."""


OnBad: TypeAlias = Callable[[str, BadTextError], None]
"""Given the source (a file or a dataset) and what is bad in it, raises that or takes note."""


def refuse(source: str, bad: BadTextError) -> None:
    """The usual ``OnBad``: nothing is left out."""
    raise bad


@dataclass(slots=True)
class Skipped:
    """What was left out of a text.

    Attributes:
        allowed: whether anything may be; if not, it is refused.
        named: the first ones.
        counts: how many of each source.
    """

    allowed: bool = False
    named: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, bad: BadTextError) -> None:
        """An ``OnBad``.

        Raises:
            BadTextError: ``bad``, where nothing may be left out.
        """
        if not self.allowed:
            raise bad
        if isinstance(bad, NoTextError) and self.counts[source]:
            return  # all of it was bad, and is counted
        self.counts[source] += 1
        if len(self.named) < _NAMED:
            self.named.append(bad.found)

    def clear(self) -> None:
        """Forget all, as the text is read from its beginning."""
        self.named.clear()
        self.counts.clear()

    def apart(self) -> "Skipped":
        """Another for the same text, whose counts do not matter."""
        return Skipped(allowed=self.allowed)

    def nothing_left(self) -> KrakenError:
        """What to say where all of a text is bad."""
        return KrakenError(
            f"no text is left without what is bad, which begins with {self.named[0]}: correct "
            "the text, or the name of its --column"
        )
