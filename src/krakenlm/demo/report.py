"""What the demo found, as a table on the terminal, as JSON, and as one HTML page."""

import base64
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from krakenlm.bench.figures import draw_latencies, draw_losses, draw_timelines
from krakenlm.bench.results import LatencyReport
from krakenlm.config import WiringName
from krakenlm.console import results
from krakenlm.data.manifest import Manifest
from krakenlm.demo.steps import Sample
from krakenlm.engine.trace import Event
from krakenlm.eval.perplexity import PerplexityResult
from krakenlm.files import write_json, write_whole
from krakenlm.train.run_folder import RunFolder

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything the report shows."""

    manifest: Manifest
    runs: dict[WiringName, RunFolder]
    scores: dict[str, PerplexityResult]
    sample: Sample
    latency: LatencyReport
    timelines: dict[str, list[Event]]

    @cached_property
    def histories(self) -> dict[str, Any]:
        """Losses of the trained models, by wiring."""
        return {w: json.loads(run.history.read_text("utf-8")) for w, run in self.runs.items()}


def write_report(findings: Findings, out: Path) -> Path:
    """Write results.json, the pictures and report.html; return the page."""
    histories = findings.histories
    write_json(out / "results.json", _as_json(findings, histories))
    pictures = {name: out / f"{name}.png" for name in ("losses", "first_token", "timeline")}
    draw_losses(histories, pictures["losses"])
    draw_latencies(findings.latency, pictures["first_token"])
    draw_timelines(findings.timelines, pictures["timeline"])
    page = out / "report.html"
    write_whole(page, _page(findings, histories, pictures))
    return page


def show(findings: Findings) -> None:
    """Print the tables that the README shows."""
    scores = Table(
        title="Quality: validation text, both models trained on the same tokens",
        title_justify="left",
    )
    for heading in _SCORE_HEADINGS:
        scores.add_column(heading, justify="left" if heading == "model" else "right")
    for row in _score_rows(findings):
        scores.add_row(*row)
    results.print(scores)
    sample = findings.sample
    results.print("\nThe Kraken model on two processes (temperature 0.8, top-k 50):")
    results.print(Text.assemble(sample.prompt, (sample.answer, "bold")))
    verdict = "the same" if sample.greedy_tokens_agree else "NOT the same"
    results.print(
        f"\nGreedy tokens from one and from two processes: {verdict} "
        f"({sample.greedy_tokens} compared)\n"
    )
    latency = Table(title=f"Time to first token: {findings.latency.title}", title_justify="left")
    for heading in _LATENCY_HEADINGS:
        latency.add_column(heading, justify="left" if heading == "wiring" else "right")
    for row in _latency_rows(findings.latency):
        latency.add_row(*row)
    results.print(latency)


_SCORE_HEADINGS = ("model", "parameters", "loss", "perplexity", "bits per byte")
_LATENCY_HEADINGS = (
    "wiring",
    "TTFT, ms",
    "p10 to p90",
    "no communication, ms",
    "speedup",
    "latency",
)


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


def _latency_rows(report: LatencyReport) -> list[tuple[str, ...]]:
    return [
        (
            result.wiring,
            f"{result.ttft_ms.median:.2f}",
            f"{result.ttft_ms.p10:.2f} to {result.ttft_ms.p90:.2f}",
            f"{result.no_comm_ttft_ms.median:.2f}",
            "" if result.speedup is None else f"{result.speedup:.2f}x",
            "" if result.reduction_percent is None else f"{0.0 - result.reduction_percent:+.1f}%",
        )
        for result in report.results
    ]


def _as_json(findings: Findings, histories: dict[str, Any]) -> dict[str, Any]:
    manifest = findings.manifest
    return {
        "data": {
            "sources": [Path(source.path).name for source in manifest.sources[:20]],
            "number_of_sources": len(manifest.sources),
            "vocab_size": manifest.vocab_size,
            "train_tokens": manifest.splits.train.tokens,
            "validation_tokens": manifest.splits.validation.tokens,
        },
        "training": histories,
        "perplexity": {wiring: score.to_json() for wiring, score in findings.scores.items()},
        "sample": asdict(findings.sample),
        "first_token": findings.latency.to_json(),
    }


def _page(findings: Findings, histories: dict[str, Any], pictures: dict[str, Path]) -> str:
    """The template filled; it escapes what it is given, so that a model's text stays text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # loads a compiler

    loader = FileSystemLoader(_TEMPLATE.parent)
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = templates.get_template(_TEMPLATE.name).render(
        manifest=findings.manifest,
        tokens_seen=_tokens_seen(histories["kraken"]),
        score_headings=_SCORE_HEADINGS,
        score_rows=_score_rows(findings),
        sample=findings.sample,
        latency=findings.latency,
        latency_headings=_LATENCY_HEADINGS,
        latency_rows=_latency_rows(findings.latency),
        environment=findings.latency.environment,
        pictures={name: _embedded(path) for name, path in pictures.items()},
    )
    return f"{page}\n"


def _tokens_seen(history: dict[str, Any]) -> int:
    return int(history["validation"][-1]["step"] * history["tokens_per_step"])


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
