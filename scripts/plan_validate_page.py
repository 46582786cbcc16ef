"""How far the planner is from measurements: tables and a picture, from files of results."""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import markers
import recording
from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.bench.results import LatencyReport, ModelLatency, in_this_layout
from krakenlm.config.sizes import GPT2_VOCAB_SIZE
from krakenlm.files import whole_file
from krakenlm.strict import read_report

PAGE = recording.DOCS / "planner.md"
RESULTS = recording.RESULTS / "plan-validate"
PICTURE = "planned-over-measured.png"
CALIBRATIONS = "calibrations.json"
SCHEMA_VERSION = 1
TOLD_APART = 0.04
"""Models whose measured times differ by less are not ranked."""
MEDIAN_TTFT, WORST_TTFT, MEDIAN_TPOT = 0.05, 0.15, 0.08
"""Errors that the planner is to stay within."""
NOT_YET = "Not measured yet: `make plan-validate` measures it.\n"


@dataclass(frozen=True)
class Shape:
    """A standard model: width, layers, and tokens of its vocabulary."""

    hidden: int
    layers: int
    vocabulary: int = GPT2_VOCAB_SIZE


class Case(NamedTuple):
    """One shape, one length of prompt, one link."""

    shape: str
    tokens: int
    link: str

    def __str__(self) -> str:
        return f"{self.shape}, {self.tokens} tokens, {self.link}"

    @property
    def file_name(self) -> str:
        """Of its results."""
        link = self.link.removesuffix(" Gbit/s").replace(" ", "-")
        return f"case-{self.shape}-{self.tokens}-{link}.json"


@dataclass(frozen=True, kw_only=True)
class PlannedTimes:
    """What the planner says of one model; milliseconds."""

    label: str
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """A case, measured and planned.

    Attributes:
        kind: tells these files from others of the project.
        schema_version: of this layout.
        shape: by name.
        tokens: of a prompt.
        link: as the case names it.
        report: of `bench latency`.
        planned: in the order of its models.
    """

    kind: Literal["plan-validation"] = "plan-validation"
    schema_version: int = SCHEMA_VERSION
    shape: str
    tokens: int
    link: str
    report: LatencyReport
    planned: tuple[PlannedTimes, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "report": self.report.to_json()}

    @classmethod
    def load(cls, path: Path) -> "CaseResult":
        """Read what ``to_json`` gave."""
        return read_report(
            cls,
            path,
            "plan-validation",
            SCHEMA_VERSION,
            what="a validation of the planner",
            advice="run scripts/plan_validate.py again",
            again="run scripts/plan_validate.py again",
            current=_with_report,
        )


def _with_report(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "report": in_this_layout(values["report"])}


class Compared(NamedTuple):
    """One time of one model, both ways; milliseconds."""

    case: CaseResult
    model: ModelLatency
    measured: float
    planned: float

    @property
    def error(self) -> float:
        """Of the plan, as a share of what was measured."""
        return self.planned / self.measured - 1.0


def results(folder: Path = RESULTS) -> list[CaseResult]:
    """Every case that is there."""
    return [CaseResult.load(path) for path in sorted(folder.glob("case-*.json"))]


def ttfts(cases: Iterable[CaseResult]) -> list[Compared]:
    """First tokens of all models."""
    return [
        Compared(case, model, model.ttft_ms.median, planned.ttft_ms)
        for case in cases
        for model, planned in zip(case.report.results, case.planned, strict=True)
    ]


def tpots(cases: Iterable[CaseResult]) -> list[Compared]:
    """Later tokens of all models."""
    return [
        Compared(case, model, model.tpot_ms.median, planned.tpot_ms)
        for case in cases
        for model, planned in zip(case.report.results, case.planned, strict=True)
        if model.tpot_ms is not None
    ]


class Ranking(NamedTuple):
    """Pairs of models of one case whose first tokens differ, and those that the plan orders so."""

    pairs: int
    right: int


def ranking(cases: Iterable[CaseResult]) -> Ranking:
    """Of all pairs whose measured times differ by more than ``TOLD_APART``."""
    pairs = right = 0
    for case in cases:
        for a, b in itertools.combinations(ttfts([case]), 2):
            if max(a.measured, b.measured) > (1.0 + TOLD_APART) * min(a.measured, b.measured):
                pairs += 1
                right += (a.measured < b.measured) == (a.planned < b.planned)
    return Ranking(pairs, right)


def middle(compared: Sequence[Compared]) -> float:
    """The median error, without its sign."""
    return statistics.median(abs(each.error) for each in compared)


def worst(compared: Sequence[Compared]) -> float:
    """The largest error, without its sign."""
    return max(abs(each.error) for each in compared)


def summary_table(folder: Path = RESULTS) -> str:
    """What was asked of the planner, and what was found."""
    found = results(folder)
    if not found:
        return NOT_YET
    first, later, order = ttfts(found), tpots(found), ranking(found)
    rows = [
        ("first token, median error", _percent(middle(first)), _percent(MEDIAN_TTFT, 0)),
        ("first token, worst error", _percent(worst(first)), _percent(WORST_TTFT, 0)),
        ("later tokens, median error", _percent(middle(later)), _percent(MEDIAN_TPOT, 0)),
        ("pairs of models in the right order", f"{order.right} of {order.pairs}", "all"),
    ]
    said = found[0].report
    return (
        markers.markdown(("what", "found", "wanted"), rows, numbers=True)
        + f"\n{len(found)} cases, {len(first)} models; {said.dtype}, {said.environment}. Pairs: "
        f"models of one case whose first tokens were measured to differ by more than "
        f"{_percent(TOLD_APART, 0)}. {_calibrations(folder)}\n"
    )


def _calibrations(folder: Path) -> str:
    """How much the machine changed between calibrations, in what they say of one model."""
    found = json.loads((folder / CALIBRATIONS).read_text(encoding="utf-8"))
    said = [_range([each[key] for each in found["planned"]]) for key in ("ttft_ms", "tpot_ms")]
    return (
        f"The machine was calibrated {len(found['planned'])} times: for the standard model of "
        f"{found['reference']}, these plan {said[0]} ms to the first token and {said[1]} ms for "
        "each later one."
    )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def links_table(folder: Path = RESULTS) -> str:
    """A row a link."""
    found = results(folder)
    if not found:
        return NOT_YET
    rows = []
    for link in dict.fromkeys(case.link for case in sorted(found, key=lambda c: c.link)):
        of_link = [case for case in found if case.link == link]
        order = ranking(of_link)
        rows.append(
            (
                link,
                f"{len(of_link)}",
                _percent(middle(ttfts(of_link))),
                _percent(worst(ttfts(of_link))),
                _percent(middle(tpots(of_link))),
                f"{order.right} of {order.pairs}",
            )
        )
    headings = ("link", "cases", "TTFT, median", "TTFT, worst", "TPOT, median", "pairs in order")
    return markers.markdown(headings, rows, numbers=True)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def draw(folder: Path = RESULTS) -> None:
    """Planned over measured, first tokens and later ones; nothing where nothing was measured."""
    found = results(folder)
    if not found:
        return
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    of: tuple[tuple[str, Callable[[list[CaseResult]], list[Compared]]], ...] = (
        ("time to first token, ms", ttfts),
        ("time per token after it, ms", tpots),
    )
    for axes, (title, times) in zip(figure.subplots(1, 2).flat, of, strict=True):
        _scatter(axes, times(found))
        axes.set_title(title, fontsize=9)
    with whole_file(folder / PICTURE) as partial:
        figure.savefig(partial, dpi=150, format="png")


_MARKERS = {"one": "o", "emulated": "^", "real": "s"}


def _scatter(axes: Axes, compared: Sequence[Compared]) -> None:
    named: set[str] = set()
    for each in compared:
        wiring = each.model.wiring
        axes.scatter(
            each.measured,
            each.planned,
            s=14,
            marker=_MARKERS[each.case.link.split()[0]],
            color=WIRING_COLOURS[wiring],
            label=None if wiring in named else wiring,
            alpha=0.8,
            linewidths=0,
        )
        named.add(wiring)
    ends = [f(v for e in compared for v in (e.measured, e.planned)) for f in (min, max)]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    for share in (-WORST_TTFT, WORST_TTFT):
        axes.plot(ends, [(1 + share) * end for end in ends], color="grey", linewidth=0.6, ls=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured (o one host, ^ emulated link, s real link)")
    axes.set_ylabel("planned")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


TABLES: dict[str, markers.Table] = {
    "plan-validate summary": summary_table,
    "plan-validate links": links_table,
}
