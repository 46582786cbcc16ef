"""What the demo found, as a table on the terminal, as JSON, and as one HTML page."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from krakenlm.bench.figures import draw_links, draw_losses, draw_timelines
from krakenlm.bench.latency import Timelines
from krakenlm.bench.results import LatencyReport
from krakenlm.bench.tables import WIDTH
from krakenlm.console import console_for_tables, results
from krakenlm.data.manifest import Manifest
from krakenlm.demo.outcome import Outcome, Over
from krakenlm.demo.plan import Plan
from krakenlm.demo.steps import Agreement
from krakenlm.eval.perplexity import PerplexityResult
from krakenlm.files import write_json, write_whole
from krakenlm.train.run_folder import RunFolder

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_ROOM_FOR_ONE_LINE = 116
_SCORE_HEADINGS = ("model", "parameters", "loss", "perplexity", "bits per byte")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything the report shows; latencies are in the order of the plan's links."""

    plan: Plan
    manifest: Manifest
    runs: dict[str, RunFolder]
    scores: dict[str, PerplexityResult]
    agreement: Agreement
    latencies: Sequence[LatencyReport]
    timelines: Timelines

    @cached_property
    def histories(self) -> dict[str, Any]:
        """Losses of the trained models, by wiring."""
        return {w: json.loads(run.history.read_text("utf-8")) for w, run in self.runs.items()}

    @property
    def outcome(self) -> Outcome:
        """The numbers that count."""
        links = zip(self.plan.wires, self.latencies, strict=True)
        return Outcome(
            perplexities={wiring: score.perplexity for wiring, score in self.scores.items()},
            links=[Over(title=w.title, where=w.where, report=report) for w, report in links],
        )


def write_report(findings: Findings, out: Path) -> Path:
    """Write results.json, the pictures and report.html; return the page."""
    write_json(out / "results.json", _as_json(findings))
    pictures = {name: out / f"{name}.png" for name in ("losses", "first_token", "timeline")}
    draw_losses(findings.histories, pictures["losses"])
    draw_outcome(findings.outcome, pictures["first_token"])
    draw_timelines(findings.timelines, pictures["timeline"])
    page = out / "report.html"
    write_whole(page, _page(findings, pictures))
    return page


def draw_outcome(outcome: Outcome, target: Path) -> None:
    """The first token over each link, as bars."""
    draw_links({over.title + over.emulated: over.report for over in outcome.links}, target)


def show(findings: Findings) -> None:
    """Print the last screen."""
    outcome, agreement = findings.outcome, findings.agreement
    console = console_for_tables(WIDTH)
    narrow = console.width < _ROOM_FOR_ONE_LINE
    table = Table(
        title=f"Time to first token: {_timed(findings)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in outcome.headings:
        table.add_column(heading.replace(" (", "\n("), justify="right" if table.columns else "left")
    for wiring, cells in outcome.rows():
        table.add_row(wiring, *(cell.narrow if narrow else str(cell) for cell in cells))
    console.print(table)
    same = "the same" if agreement.agree else "NOT the same"
    results.print(
        f"Greedy tokens from one and from two processes: {same} ({agreement.tokens} compared)\n"
    )
    results.print(outcome.sentence(), style="bold", markup=False)


def _timed(findings: Findings) -> str:
    report = findings.latencies[0]
    return f"{report.title}, {report.dtype}"


def _score_rows(findings: Findings) -> list[tuple[str, ...]]:
    histories = findings.histories
    return [
        (
            wiring,
            f"{histories[wiring]['parameters']:,}",
            f"{score.loss:.4f}",
            f"{score.perplexity:.2f}",
            f"{score.bits_per_byte:.4f}",
        )
        for wiring, score in findings.scores.items()
    ]


def _as_json(findings: Findings) -> dict[str, Any]:
    manifest, plan = findings.manifest, findings.plan
    return {
        "data": {
            "sources": [Path(source.path).name for source in manifest.sources[:20]],
            "number_of_sources": len(manifest.sources),
            "vocab_size": manifest.vocab_size,
            "train_tokens": manifest.splits.train.tokens,
            "validation_tokens": manifest.splits.validation.tokens,
        },
        "training": findings.histories,
        "perplexity": {wiring: score.to_json() for wiring, score in findings.scores.items()},
        "greedy_tokens": asdict(findings.agreement),
        "links": [
            {"title": wire.title, "where": wire.where, "file": plan.first_token(wire).name}
            for wire in plan.wires
        ],
    }


def _page(findings: Findings, pictures: dict[str, Path]) -> str:
    """The template filled; it escapes what it is given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # loads a compiler

    loader = FileSystemLoader(_TEMPLATE.parent)
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    outcome, latencies = findings.outcome, findings.latencies
    page = templates.get_template(_TEMPLATE.name).render(
        manifest=findings.manifest,
        tokens_seen=_tokens_seen(next(iter(findings.histories.values()))),
        sentence=outcome.sentence(),
        headings=outcome.headings,
        rows=[(wiring, *map(str, cells)) for wiring, cells in outcome.rows()],
        score_headings=_SCORE_HEADINGS,
        score_rows=_score_rows(findings),
        agreement=findings.agreement,
        timed=_timed(findings),
        rounds=[report.iterations for report in latencies],
        emulated=[over.report.link for over in outcome.links if over.emulated],
        recorded=next(wire.where for wire in findings.plan.wires if wire.record),
        environment=latencies[0].environment,
        pictures={name: _embedded(path) for name, path in pictures.items()},
    )
    return f"{page}\n"


def _tokens_seen(history: dict[str, Any]) -> int:
    return int(history["validation"][-1]["step"] * history["tokens_per_step"])


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
