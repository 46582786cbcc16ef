"""What to take on which link: time to first token against quality, as docs/choose.md shows it.

    python scripts/choose.py

It measures nothing: the times are those of docs/results/latency (scripts/run_bench.py), the
perplexities those of docs/results/parity (scripts/parity.py). Each time belongs to the model of as
many sub-layers as the link has ranks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

import latency_page
import markers
import parity_page
import recording
from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.bench.results import LatencyReport, ModelLatency
from krakenlm.config import WIRINGS
from krakenlm.files import whole_file
from krakenlm.spread import Spread

PAGE = recording.DOCS / "choose.md"
PICTURE = recording.RESULTS / "choose" / "choose.png"
LINKS = {
    "one-host": "one host, 2 ranks",
    "veth-1gbit": "1 Gbit/s, 2 ranks",
    "veth-100mbit": "100 Mbit/s, 2 ranks",
    "emulated-4-ranks": "1 Gbit/s, 4 ranks (emulated)",
}


@dataclass(frozen=True)
class Choice:
    """One model on one link.

    Attributes:
        name: of the model, as docs/parity.md calls it.
        wiring: its architecture.
        ttft_ms: over runs.
        speedup: of that time, over the standard model's.
        quality: perplexity over the standard model's in per cent: mean, least and most over seeds;
            None where the model has not been trained.
    """

    name: str
    wiring: str
    ttft_ms: Spread
    speedup: Spread
    quality: dict[str, float] | None

    @property
    def rule(self) -> str:
        """By which a Kraken was derived."""
        return self.name.rpartition(" ")[2]


def choices(scenario: str) -> list[Choice]:
    """All models that were timed on a link with the whole prompt at once."""
    runs = latency_page.reports(scenario)
    trained = {model["name"]: model for model in parity_page.load_summary()["models"]}
    timed = [result for result in runs[0].results if (result.prefill_chunks or 1) == 1]
    return [_choice(runs, result, trained) for result in timed]


def _choice(
    runs: Sequence[LatencyReport], result: ModelLatency, trained: dict[str, dict[str, Any]]
) -> Choice:
    over = partial(latency_page.over_runs, runs, result.name)
    name = name_of(result, runs[0].devices)
    quality = trained[name]["perplexity_over_standard_percent"] if name in trained else None
    return Choice(
        name=name,
        wiring=result.wiring,
        ttft_ms=Spread.of(over(lambda r: r.ttft_ms.median)),
        speedup=Spread.of(over(lambda r: r.speedup)),
        quality=quality,
    )


def name_of(result: ModelLatency, ranks: int) -> str:
    """What docs/parity.md calls the model that was timed on so many ranks."""
    degree = f"{ranks}-way" if WIRINGS[result.wiring].depends_on_degree else None
    parted = re.search(r"1/(\d+) of the channels", result.label)
    parts = f"message_parts {parted[1]}" if parted else None
    return " ".join(filter(None, [result.wiring, degree, result.variant, parts]))


def table(scenario: str) -> str:
    """A row a model, the quickest first."""
    found = sorted(choices(scenario), key=lambda choice: choice.ttft_ms.median)
    headings = ("model", "first token, ms", "speedup", "perplexity over standard")
    rows = [
        (
            choice.name,
            choice.ttft_ms.text(0),
            choice.speedup.text(2, "x"),
            _quality(choice.quality),
        )
        for choice in found
    ]
    return markers.markdown(headings, rows, numbers=True)


def _quality(quality: dict[str, float] | None) -> str:
    if quality is None:
        return ""
    return "{mean:+.1f} % ({least:+.1f} to {most:+.1f})".format(**quality)


TABLES = {f"choose {scenario}": partial(table, scenario) for scenario in LINKS}


def draw() -> None:
    """A panel a link; down and to the left is better."""
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    for axes, (scenario, link) in zip(figure.subplots(2, 2).flat, LINKS.items(), strict=True):
        _draw_link(axes, [choice for choice in choices(scenario) if choice.quality])
        axes.set_title(link, fontsize=9)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(PICTURE) as partial_file:
        figure.savefig(partial_file, dpi=150, format="png")


def _draw_link(axes: Axes, found: Sequence[Choice]) -> None:
    for choice in found:
        quality, time = choice.quality, choice.ttft_ms
        assert quality is not None, "only models with a quality are drawn"
        colour = WIRING_COLOURS[choice.wiring]
        hollow = {"markerfacecolor": "white"} if choice.rule == "keep-width" else {}
        axes.errorbar(
            quality["mean"],
            time.median,
            xerr=[[quality["mean"] - quality["least"]], [quality["most"] - quality["mean"]]],
            yerr=[[time.median - time.least], [time.most - time.median]],
            fmt="o",
            color=colour,
            linewidth=0.9,
            **hollow,
        )
        axes.annotate(
            choice.name,
            (quality["mean"], time.median),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )
    axes.set_xlabel("perplexity over the standard model's")
    axes.set_ylabel("time to first token, ms")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:+.0f} %"))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw()
    markers.rewrite([PAGE], TABLES)
