"""Run the demo and show on README.md and docs/results.md what it found.

    python scripts/publish_demo.py --text openwebtext.jsonl.gz
    python scripts/publish_demo.py --draw

The JSON files are the demo's own, kept under docs/results/demo-openwebtext; the table and the
pictures are made from them alone. ``--draw`` runs nothing. Real links need root or user namespaces.
Run nothing else on the machine meanwhile.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import markers
from krakenlm.bench.figures import draw_losses, draw_timelines
from krakenlm.demo.outcome import Outcome
from krakenlm.demo.plan import Plan
from krakenlm.demo.report import draw_outcome
from krakenlm.engine.trace import Event
from krakenlm.files import whole_directory
from recording import RESULTS, ROOT, Record, measure_and_draw, option_parser

PAGES = (ROOT / "README.md",)
SHOWN = RESULTS / "demo-openwebtext"
_PLAN = Plan(out=Path())
KEPT = (
    *("results.json", "timelines.json"),
    *(_PLAN.first_token(wire).name for wire in _PLAN.wires),
)


def publish(options: argparse.Namespace) -> None:
    """Run the demo in an empty folder and copy what is kept."""
    texts = {f"TEXT{number}": text for number, text in enumerate(options.text)}
    command = " ".join(["demo", "--text", *texts])
    with (
        tempfile.TemporaryDirectory() as name,
        whole_directory(SHOWN, replace=True) as kept,
    ):
        Record(kept, Path(name)).krakenlm("demo", command, texts)
        for file in KEPT:
            shutil.copyfile(Path(name) / "demo" / file, kept / file)


def draw() -> None:
    """The demo's pictures, from the files that are kept."""
    draw_outcome(Outcome.load(SHOWN), SHOWN / "first_token.png")
    draw_losses(_read("results.json")["training"], SHOWN / "losses.png")
    recorded = _read("timelines.json")
    timelines = {w: [Event(*event) for event in events] for w, events in recorded.items()}
    draw_timelines(timelines, SHOWN / "timeline.png")


def demo_table() -> str:
    """The demo's last screen: its table, its sentence, and what it was measured on."""
    outcome = Outcome.load(SHOWN)
    rows = [(wiring, *map(str, cells)) for wiring, cells in outcome.rows()]
    table = markers.markdown(outcome.headings, rows, numbers=True)
    return f"{table}\n**{outcome.sentence()}**\n\n{_conditions(outcome)}\n"


def _conditions(outcome: Outcome) -> str:
    training = next(iter(_read("results.json")["training"].values()))
    seconds = _read("steps.json")["steps"][0]["seconds"]
    report = outcome.links[0].report
    rounds = ", ".join(str(over.report.iterations) for over in outcome.links)
    links = "emulated links" if any(o.emulated for o in outcome.links) else "real links"
    tokens = training["validation"][-1]["step"] * training["tokens_per_step"]
    return (
        f"Perplexity: {training['parameters'] / 1e6:.1f}M parameters after {tokens:,} tokens. "
        f"First token: {report.title}, {report.dtype}, {links}; medians of {rounds} interleaved "
        "rounds, in brackets the 10th to 90th percentile of the speedup. "
        f"{report.environment}, {seconds:.0f} seconds in all."
    )


def _read(name: str) -> Any:
    return json.loads((SHOWN / name).read_text(encoding="utf-8"))


TABLES = {"demo": demo_table}


if __name__ == "__main__":
    parser = option_parser(__doc__)
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="as for the demo")
    measure_and_draw(
        parser,
        publish,
        pages=PAGES,
        tables=TABLES,
        pictures=lambda _: draw(),
        needed=("text",),
    )
