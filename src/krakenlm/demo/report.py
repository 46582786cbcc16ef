"""What the demo found, as a table on the terminal, as JSON, and as one HTML page."""

import base64
import html
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

from rich.table import Table
from rich.text import Text

from krakenlm.bench.figures import draw_latencies, draw_losses, draw_timelines
from krakenlm.bench.results import LatencyReport
from krakenlm.config import WiringName
from krakenlm.console import results
from krakenlm.data.manifest import Manifest
from krakenlm.demo.steps import Sample
from krakenlm.eval.perplexity import PerplexityResult
from krakenlm.files import write_json, write_whole
from krakenlm.parallel.trace import Event
from krakenlm.train.run_folder import RunFolder


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
    for heading in ("model", "parameters", "loss", "perplexity", "bits per byte"):
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
    manifest, latency, sample = findings.manifest, findings.latency, findings.sample
    environment = latency.environment
    return _PAGE.substitute(
        tokens=f"{manifest.splits.train.tokens:,}",
        seen=f"{_tokens_seen(histories['kraken']):,}",
        sources=f"{len(manifest.sources):,} file{'s' if len(manifest.sources) > 1 else ''}",
        vocabulary=f"{manifest.vocab_size:,}",
        scores=_html_table(
            ("model", "parameters", "loss", "perplexity", "bits per byte"), _score_rows(findings)
        ),
        latencies=_html_table(_LATENCY_HEADINGS, _latency_rows(latency)),
        title=html.escape(latency.title),
        repetitions=latency.iterations,
        prompt=html.escape(sample.prompt),
        answer=html.escape(sample.answer),
        agree="the same" if sample.greedy_tokens_agree else "NOT the same",
        greedy=sample.greedy_tokens,
        machine=html.escape(
            f"{environment.machine}, {environment.cores} cores, Python {environment.python}, "
            f"torch {environment.torch}, transformers {environment.transformers}, "
            f"krakenlm {environment.krakenlm} {environment.commit[:12]}"
        ),
        **{name: _embedded(path) for name, path in pictures.items()},
    )


def _tokens_seen(history: dict[str, Any]) -> int:
    return int(history["validation"][-1]["step"] * history["tokens_per_step"])


def _html_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>krakenlm demo</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
         color: #222; background: #fff; }
  h1, h2 { line-height: 1.2; }
  img { max-width: 100%; }
  table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
  th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
  th:first-child, td:first-child { text-align: left; }
  pre { white-space: pre-wrap; background: #f6f4ef; padding: 1rem; }
  .note { color: #555; }
</style>
<h1>One text, two models, two processes</h1>
<p>A 2-way Kraken model and a GPT-2-style model with as many parameters were trained on the same
$seen tokens of $sources ($tokens tokens in all, a byte-level BPE of $vocabulary entries),
then the models were split over two processes and timed against each other.</p>

<h2>Quality</h2>
$scores
<img src="$losses" alt="Loss over tokens of both models">
<p class="note">Models this small, trained this briefly, show that both learn, not which one is
better.</p>

<h2>A Kraken model on two processes</h2>
<pre>$prompt<b>$answer</b></pre>
<p>Greedy tokens from one and from two processes are $agree ($greedy compared).</p>

<h2>Time to first token</h2>
<p>$title. Medians of $repetitions interleaved rounds. Speedup is over the standard wiring; latency
is the same number as a change in per cent. &ldquo;No communication&rdquo; leaves every AllReduce
out: no overlap can be faster.</p>
$latencies
<img src="$first_token" alt="Time to first token of the four wirings">

<h2>Where the AllReduce goes</h2>
<p>In Kraken the AllReduce of the streams runs beside the next layer's attention; the feed-forward
network awaits it. The standard and the parallel wiring wait for each one. Ladder hides each
behind the next half block.</p>
<img src="$timeline" alt="Timeline of compute and AllReduce for the four wirings">
<p class="note">$machine</p>
</html>
""")
