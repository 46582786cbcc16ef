"""Where is the token stream cut when the documents are too few to hold whole ones out?"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from krakenlm.data.shards import Tokens
from krakenlm.data.text import utf8_length
from krakenlm.errors import KrakenError

# Two tokens are one prediction: with less there is nothing to learn or to measure.
FEWEST_TOKENS = 2
# How far to look for a token that begins a character; byte-level BPE needs at most three steps.
_STEPS_TO_CHARACTER = 16

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """What one piece of text became among the tokens."""

    tokens: int
    bytes: int
    ends_document: bool


class Cut(NamedTuple):
    """What lies before a cut: tokens, bytes, whole documents, and whether one is cut in two."""

    tokens: int
    bytes: int
    documents: int
    inside_document: bool


_NOTHING = Cut(0, 0, 0, False)


class Tail:
    """The stretches that a cut may fall into.

    The place of the cut moves only forward while the stream grows, so what lies before it is
    counted and forgotten: memory holds no more than the held-out share of the stretches.
    """

    def __init__(
        self, fraction: float, before: Cut = _NOTHING, later: Iterable[Stretch] = ()
    ) -> None:
        self._fraction = fraction
        self.before = before
        self.later = deque(later)
        self.tokens = before.tokens + sum(stretch.tokens for stretch in self.later)

    def add(self, stretch: Stretch) -> None:
        """Append one piece's tokens."""
        self.later.append(stretch)
        self.tokens += stretch.tokens
        earliest = self.tokens - self._wanted()
        while self.later and self.before.tokens + self.later[0].tokens <= earliest:
            self.before = _behind(self.before, self.later.popleft())

    def cut(self, tokens: Tokens, decode: Decode) -> Cut:
        """The first place behind which at most the fraction lies and where no character is cut.

        So the bytes of both sides are counted exactly.

        Args:
            tokens: the whole stream.
            decode: token ids to text.

        Raises:
            KrakenError: the text is too short for ``FEWEST_TOKENS`` on either side.
        """
        found = self._place(tokens, decode)
        if found.tokens < FEWEST_TOKENS or self.tokens - found.tokens < FEWEST_TOKENS:
            raise KrakenError(
                f"{self.tokens} tokens of text are too little to train on and to hold some out: "
                "add text, or choose a larger validation fraction"
            )
        return found

    def _wanted(self) -> int:
        return max(FEWEST_TOKENS, round(self._fraction * self.tokens))

    def _place(self, tokens: Tokens, decode: Decode) -> Cut:
        before, earliest = self.before, self.tokens - self._wanted()
        for stretch in self.later:
            inside = earliest - before.tokens
            if inside <= 0:
                break
            if inside < stretch.tokens:
                ids = tokens[before.tokens : before.tokens + stretch.tokens].tolist()
                if stretch.ends_document:
                    ids.pop()
                found = _character_boundary(ids, inside, stretch.bytes, decode)
                if found is not None:
                    left, left_bytes = found
                    return Cut(before.tokens + left, before.bytes + left_bytes, before[2], True)
            # Behind the stretch: what is wanted begins there, or no boundary is in it.
            before = _behind(before, stretch)
        return before


def _behind(before: Cut, stretch: Stretch) -> Cut:
    return Cut(
        before.tokens + stretch.tokens,
        before.bytes + stretch.bytes,
        before.documents + stretch.ends_document,
        not stretch.ends_document,
    )


def _character_boundary(
    ids: list[int], start: int, size: int, decode: Decode
) -> tuple[int, int] | None:
    """(tokens, bytes) left of the first boundary from ``start`` on, if one is near."""
    whole = decode(ids)
    if utf8_length(whole) != size:
        return None
    for place in range(start, min(start + _STEPS_TO_CHARACTER, len(ids))):
        left = decode(ids[:place])
        if left + decode(ids[place:]) == whole:
            return place, utf8_length(left)
    return None
