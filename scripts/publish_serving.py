"""Serve the 124M standard model and its rivals with vLLM, and keep what clients see.

    .vllm/bin/python scripts/publish_serving.py [SCENARIO...] --tokenizer FOLDER [--rounds 3]
    python scripts/publish_serving.py --draw

The models have random weights, which changes no time. ``krakenlm bench serve`` measures them, on
one host or, as root, on two nodes with a real link between them; its JSON is kept under
docs/results/serving with a picture, and the tables of docs/serving.md are made from it. ``--draw``
measures nothing. Run nothing else meanwhile.
"""

import argparse
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

import markers
import recording
from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.config import ModelConfig, derive, model_config
from krakenlm.files import whole_file
from krakenlm.serving.benchmark_report import (
    HEADINGS,
    Served,
    ServingReport,
    rows,
)
from krakenlm.spread import Spread

PAGE = recording.DOCS / "serving.md"
RESULTS = recording.RESULTS / "serving"
PICTURE = RESULTS / "cpu-2-ranks.png"


class Scenario(NamedTuple):
    """One setting: the rate of a link between two nodes, or none, and what is asked of whom."""

    rate: str | None
    models: tuple[str, ...]
    concurrency: str

    def command(self, rounds: int, num_prompts: int, report: str) -> list[str]:
        """The words that measure it, as a reader would give them."""
        begin = ["scripts/two_nodes.sh", self.rate] if self.rate else ["krakenlm", "bench", "serve"]
        devices = [] if self.rate else ["--devices", "2"]
        options = {
            "--concurrency": self.concurrency,
            "--rounds": str(rounds),
            "--num-prompts": str(num_prompts),
            "--output-json": report,
        }
        return [
            *begin,
            *self.models,
            *devices,
            *(word for pair in options.items() for word in pair),
        ]


SCENARIOS = {
    "cpu-2-ranks": Scenario(None, ("standard", "kraken-published", "kraken-keep-width"), "1,4,16"),
    "veth-1gbit": Scenario(
        "1gbit", ("standard", "kraken-published", "shared", "lagged-layer"), "1"
    ),
}


def models() -> dict[str, ModelConfig]:
    """The standard model first: speedups are over it."""
    standard = model_config("124M")
    return {
        "standard": standard,
        "kraken-published": derive(standard, 2),
        "kraken-keep-width": derive(standard, 2, rule="keep-width"),
        "shared": derive(standard, 2, rule="shared"),
        "lagged-layer": standard.replace(wiring="lagged-layer"),
    }


def report_of(scenario: str) -> Path:
    """Where its numbers are kept."""
    return RESULTS / f"{scenario}.json"


def measure(options: argparse.Namespace) -> None:
    """Write the models, and measure them with the package's own command."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, config in models().items():
            _save(folder / model, config, options.tokenizer)
        for scenario in options.scenarios or SCENARIOS:
            report = report_of(scenario)
            words = SCENARIOS[scenario].command(options.rounds, options.num_prompts, report.name)
            if SCENARIOS[scenario].rate:
                command = [str(recording.ROOT / words[0]), *words[1:]]
            else:
                command = [*recording.KRAKENLM, *words[1:]]
            record = recording.Record(RESULTS / scenario, folder)
            record.run("what clients see", command, " ".join(words), environment)
            shutil.copyfile(folder / report.name, report)


def _save(folder: Path, config: ModelConfig, tokenizer: Path) -> None:
    import torch

    from krakenlm.data.tokenizer import load_tokenizer
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

    torch.manual_seed(0)
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)
    load_tokenizer(tokenizer).save_pretrained(folder)


def serving_table(scenario: str) -> str:
    """What clients saw of each model under each load."""
    report = ServingReport.load(report_of(scenario))
    load = report.results[0].load
    rounds = 1 + max(result.round for result in report.results)
    environment = report.environment
    below = (
        f"\nPrompts of {load.input_len} random tokens, answers of {load.output_len}; medians of "
        f"each round's requests, of {rounds} rounds their median with the least and the most; "
        f"{report.devices} ranks, {environment.machine}, {environment.cores} cores, "
        f"vLLM {report.vllm}.\n"
    )
    return markers.markdown(HEADINGS, rows(report.results), numbers=True) + below


def draw() -> None:
    """The time to the first token and the time per token over requests at a time."""
    results = ServingReport.load(report_of(PICTURE.stem)).results
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (title, field) in zip(
        panels, (("TTFT, ms", "ttft_ms"), ("TPOT, ms", "tpot_ms")), strict=True
    ):
        for model in dict.fromkeys(result.model for result in results):
            own = [result for result in results if result.model == model]
            style = "--" if "keep-width" in model else "-"
            colour = WIRING_COLOURS[own[0].wiring]
            at, spreads = _over_loads(own, field)
            axes.plot(at, [s.median for s in spreads], style, marker="o", color=colour, label=model)
            low, high = [s.least for s in spreads], [s.most for s in spreads]
            axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(at, [str(number) for number in at])
        axes.set_xlabel("requests at a time")
        axes.set_ylabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    with whole_file(PICTURE) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _over_loads(results: list[Served], field: str) -> tuple[list[int], list[Spread]]:
    loads = sorted({result.load.concurrency for result in results})
    spreads = [
        Spread.of([getattr(r, field) for r in results if r.load.concurrency == concurrency])
        for concurrency in loads
    ]
    return loads, spreads


TABLES = {
    "served": partial(serving_table, "cpu-2-ranks"),
    "served by two nodes": partial(serving_table, "veth-1gbit"),
}


if __name__ == "__main__":
    parser = recording.option_parser(__doc__)
    recording.add_scenarios(parser, SCENARIOS)
    parser.add_argument("--tokenizer", type=Path, help="folder of GPT-2's tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-prompts", type=int, default=4, help="for each place under way")
    recording.measure_and_draw(
        parser,
        measure,
        pages=[PAGE],
        tables=TABLES,
        pictures=lambda _: draw(),
        needed=["tokenizer"],
    )
