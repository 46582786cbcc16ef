"""What came out, as the last screen and the README show it: one table and one sentence.

The sentence follows from the numbers: whatever they are, it claims no more than they show.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from krakenlm.bench.results import BASELINE, REAL_LINK, LatencyReport, ModelLatency
from krakenlm.bench.tables import milliseconds
from krakenlm.spread import Quantiles

# A wiring is worth taking if its perplexity is no further above the standard model's, in per cent.
_TOLERATED = 2.0


class Cell(NamedTuple):
    """A number, what it is over the standard model's, and that ratio's spread; all may be empty."""

    value: str = ""
    relative: str = ""
    spread: str = ""

    def __str__(self) -> str:
        spread = f" ({self.spread})" if self.spread else ""
        return ", ".join(filter(None, (self.value, self.relative))) + spread

    @property
    def narrow(self) -> str:
        """The same on two short lines."""
        return f"{self.value}\n{self.relative} {self.spread}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Over:
    """First tokens over one link.

    Attributes:
        title: of the link, for people.
        where: the same within a sentence.
        report: what was measured.
    """

    title: str
    where: str
    report: LatencyReport

    @property
    def emulated(self) -> str:
        """To stand behind the title: an emulated link must not be taken for a real one."""
        return "" if self.report.link == REAL_LINK else " (emulated)"

    @property
    def by_wiring(self) -> dict[str, ModelLatency]:
        """One model each, by what the plan calls it."""
        return {result.label: result for result in self.report.results}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The numbers that count.

    Attributes:
        perplexities: of the models that were trained, the standard one among them.
        links: each with every wiring.
    """

    perplexities: Mapping[str, float]
    links: Sequence[Over]

    @classmethod
    def load(cls, folder: Path) -> "Outcome":
        """Read a demo's folder, or what ``scripts/publish_demo.py`` kept of it."""
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return cls(
            perplexities={w: score["perplexity"] for w, score in found["perplexity"].items()},
            links=[
                Over(
                    title=link["title"],
                    where=link["where"],
                    report=LatencyReport.load(folder / link["file"]),
                )
                for link in found["links"]
            ],
        )

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the table."""
        return ("wiring", "perplexity", *(o.title + o.emulated for o in self.links))

    def rows(self) -> list[tuple[str, list[Cell]]]:
        """A row a wiring: its name, then a cell for each other heading."""
        wirings = self.links[0].by_wiring
        return [
            (wiring, [self._quality(wiring), *(_speed(o.by_wiring[wiring]) for o in self.links)])
            for wiring in wirings
        ]

    def worse(self, wiring: str) -> float:
        """Perplexity above the standard model's, in per cent; below it, a negative number."""
        return 100 * (self.perplexities[wiring] / self.perplexities[BASELINE] - 1)

    def sentence(self) -> str:
        """What to choose."""
        rivals = [wiring for wiring in self.perplexities if wiring != BASELINE]
        ahead = {w: [over for over in self.links if _ahead(over.by_wiring[w])] for w in rivals}
        as_good = [wiring for wiring in rivals if self.worse(wiring) <= _TOLERATED]
        chosen = max(as_good, key=lambda w: self._gain(w, ahead[w]), default=None)
        if chosen is not None and ahead[chosen]:
            return self._praise(chosen, ahead[chosen])
        price = [f"{w}'s perplexity is {self._above(w)} {BASELINE}'s" for w in rivals if ahead[w]]
        if price:
            return (
                f"Choose {BASELINE} unless a sooner first token is worth its price: "
                f"{_listed(price)}."
            )
        return (
            f"Choose {BASELINE}: in this run no trained wiring was ahead of it by more than the "
            "spread; run it again on a quiet machine before you rely on that."
        )

    def _gain(self, wiring: str, links: Sequence[Over]) -> tuple[int, float]:
        """On how many links it is ahead, and by how much."""
        return len(links), math.prod(_ratios(over.by_wiring[wiring]).median for over in links)

    def _praise(self, wiring: str, ahead: Sequence[Over]) -> str:
        faster = [
            f"{_ratios(over.by_wiring[wiring]).median:.2f}x as fast {over.where}{over.emulated}"
            for over in ahead
        ]
        rest = [
            f"; {over.where}{over.emulated} it {_no_gain(over.by_wiring[wiring])}"
            for over in self.links
            if over not in ahead
        ]
        return (
            f"Choose {wiring}: its first token comes {_listed(faster)}, with a perplexity "
            f"{self._above(wiring)} {BASELINE}'s{''.join(rest)}."
        )

    def _above(self, wiring: str) -> str:
        worse = self.worse(wiring)
        return f"{abs(worse):.1f} % {'above' if worse > 0 else 'below'}"

    def _quality(self, wiring: str) -> Cell:
        if wiring not in self.perplexities:
            return Cell()
        relative = "" if wiring == BASELINE else f"{self.worse(wiring):+.1f} %"
        return Cell(f"{self.perplexities[wiring]:.1f}", relative)


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def _speed(result: ModelLatency) -> Cell:
    ratios = _ratios(result)
    ttft = f"{milliseconds(result.ttft_ms.median)} ms"
    if result.wiring == BASELINE:
        return Cell(ttft)
    return Cell(ttft, f"{ratios.median:.2f}x", _range(ratios))


def _ratios(result: ModelLatency) -> Quantiles:
    assert result.speedup_spread is not None, "the standard model is among those that are timed"
    return result.speedup_spread


def _range(ratios: Quantiles) -> str:
    return f"{ratios.p10:.2f}–{ratios.p90:.2f}"


def _ahead(result: ModelLatency) -> bool:
    """By more than the spread."""
    return _ratios(result).p10 > 1.0


def _no_gain(result: ModelLatency) -> str:
    ratios = _ratios(result)
    what = "is slower" if ratios.p90 < 1.0 else "makes no difference"
    return f"{what} ({ratios.median:.2f}x, {_range(ratios)})"
