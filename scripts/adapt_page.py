"""Tables and picture of docs/adapt.md, from what scripts/publish_adapt.py keeps.

A folder of results holds ``CASE.json``, the ``adapt.json`` of each, ``CASE-history.json`` with its
losses, ``cases.json`` and ``adapt.png``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

import markers
import recording
from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.bench.results import LatencyReport
from krakenlm.config import parse_layers
from krakenlm.files import whole_file
from krakenlm.strict import from_json

PAGE = recording.DOCS / "adapt.md"
RESULTS = recording.RESULTS / "adapt"
_TO_COME = "The runs are still to come.\n"


@dataclass(frozen=True)
class Adapted:
    """One adaptation.

    Attributes:
        wiring: of the adapted model.
        layers: how many are late.
        late: which, as text.
        tokens: that it learned from.
        sublayers: N.
        rises: of each text, how far the perplexities of the rewired and the adapted model are over
            the original's, in per cent; held-out text of the training data comes first.
        superglue: mean of the original and the adapted model, per cent, where they were scored.
        latency: reports of the links that were timed.
        by_sublayers: perplexity over the original's with each N that was drawn, in per cent.
    """

    wiring: str
    layers: int
    late: str
    tokens: int
    sublayers: tuple[int, ...]
    rises: list[tuple[float, float]]
    superglue: tuple[float, float] | None
    latency: list[LatencyReport]
    by_sublayers: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> "Adapted":
        """From an ``adapt.json``."""
        values = json.loads(path.read_text(encoding="utf-8"))
        total = values["num_hidden_layers"]
        late = values["late_layers"] or f"0-{total - 1}"
        stages = list(values["perplexity"].values())
        own = stages[0]["original"]
        return cls(
            wiring=values["wiring"],
            layers=len(parse_layers(late, total, "late_layers")),
            late=late,
            tokens=values["tokens"],
            sublayers=tuple(values["sublayers"]),
            rises=[
                (_rise(of["rewired"], of["original"]), _rise(of["adapted"], of["original"]))
                for of in stages
            ],
            superglue=_means(values["superglue"]),
            latency=[
                from_json(LatencyReport, each, path, "measure again") for each in values["latency"]
            ],
            by_sublayers={n: _rise(each, own) for n, each in values["by_sublayers"].items()},
        )


def results() -> list[Adapted]:
    """All that are kept, those with the most tokens first, then by wiring and late layers."""
    files = [
        path
        for path in sorted(RESULTS.glob("*.json"))
        if path.name != "cases.json" and not path.name.endswith("-history.json")
    ]
    order = list(WIRING_COLOURS)
    return sorted(
        (Adapted.read(path) for path in files),
        key=lambda found: (-found.tokens, order.index(found.wiring), found.layers),
    )


def _rise(value: float, original: float) -> float:
    return 100 * (value / original - 1)


def _means(reports: dict[str, Any]) -> tuple[float, float] | None:
    if not reports:
        return None

    def mean(report: dict[str, Any]) -> float:
        return sum(score["score"] for score in report["scores"]) / len(report["scores"])

    return mean(reports["original"]), mean(reports["adapted"])


def quality_table() -> str:
    """A row for each adaptation."""
    headings = (
        *("wiring", "N", "late layers", "tokens", "held-out text, before", "after"),
        *("other text, before", "after", "SuperGLUE, original", "adapted"),
    )
    found = results()
    if not found:
        return _TO_COME
    return markers.markdown(headings, [_row(each) for each in found], numbers=True)


def _row(found: Adapted) -> tuple[str, ...]:
    rises = [f"{rise:+.1f} %" for pair in found.rises[:2] for rise in pair]
    scores = ("", "") if found.superglue is None else tuple(f"{s:.1f}" for s in found.superglue)
    return (
        found.wiring,
        ", ".join(map(str, found.sublayers)),
        f"{found.layers}: {found.late}",
        f"{found.tokens / 1e6:.2g}M",
        *rises,
        *[""] * (4 - len(rises)),
        *scores,
    )


def latency_table() -> str:
    """The first token of original and adapted models over each link."""
    headings = ("wiring", "late layers", "link", "original", "adapted", "speedup", "over its own")
    rows = [_latency_row(found, report) for found in results() for report in found.latency]
    return markers.markdown(headings, rows, numbers=True) if rows else _TO_COME


def _latency_row(found: Adapted, report: LatencyReport) -> tuple[str, ...]:
    original, adapted = report.results
    alone = adapted.ttft_ms.median / adapted.no_comm_ttft_ms.median - 1
    return (
        found.wiring,
        f"{found.layers}",
        report.link,
        f"{original.ttft_ms.median:.0f} ms",
        f"{adapted.ttft_ms.median:.0f} ms",
        "" if adapted.speedup is None else f"{adapted.speedup:.2f}x",
        f"{100 * alone:+.0f} %",
    )


TABLES = {"adapt": quality_table, "adapt latency": latency_table}


def draw() -> None:
    """Perplexity over the original's by the number of late layers, before and after training."""
    found = [each for each in results() if len(each.sublayers) == 1]
    if not found:
        return
    budgets = sorted({each.tokens for each in found})
    figure = Figure(figsize=(5.4 * len(budgets), 4.4), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False)[0]
    for axes, tokens in zip(panels, budgets, strict=True):
        _draw_curves(axes, [each for each in found if each.tokens == tokens])
        axes.set_title(f"{tokens / 1e6:.2g}M tokens", fontsize=9)
    panels[0].set_ylabel("perplexity over the original's")
    with whole_file(RESULTS / "adapt.png") as partial:
        figure.savefig(partial, dpi=150, format="png")


def _draw_curves(axes: Axes, found: list[Adapted]) -> None:
    for wiring in dict.fromkeys(each.wiring for each in found):
        points = sorted((e.layers, *e.rises[0]) for e in found if e.wiring == wiring)
        layers, before, after = zip(*points, strict=True)
        colour = WIRING_COLOURS[wiring]
        axes.plot(layers, before, "o--", color=colour, linewidth=0.8, markersize=3, alpha=0.6)
        axes.plot(layers, after, "o-", color=colour, label=wiring)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:+g} %"))
    axes.set_xlabel("late layers; dashed: before training")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
