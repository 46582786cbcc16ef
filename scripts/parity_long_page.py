"""Summary, picture and tables of docs/parity-long.md.

A folder of results holds ``runs/NAME.json``, one a training run, ``parity-long.json``, what they
say together, and ``parity-long.png``.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

import markers
import recording
from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.files import whole_file, write_json
from parity_page import BASELINE, Measured

__all__ = ["PAGE", "RESULTS", "TABLES", "draw", "load_summary", "summary", "write_summary"]

PAGE = recording.DOCS / "parity-long.md"
RESULTS = recording.RESULTS / "parity-long"
_FILE = "parity-long.json"
_TO_COME = "The runs are still to come.\n"


def summary(
    measured: Sequence[Measured], full: int, texts: Sequence[str], environment: dict[str, Any]
) -> dict[str, Any]:
    """What every model came to, each run beside the baseline's of the same seed and length.

    Args:
        measured: all runs.
        full: steps of the comparison; shorter runs have chosen learning rates.
        texts: what was learned from.
        environment: where.
    """
    long, tried = _with_best_rates([run for run in measured if run.history.step >= full])
    tuning = [run for run in measured if run.history.step < full]
    keys = dict.fromkeys((run.model, run.history.step) for run in long)
    return {
        "schema_version": 1,
        "text": list(texts),
        "environment": environment,
        "models": [_entry(long, name, steps) for name, steps in keys],
        "tuning": [
            {"name": run.model, "learning_rate": run.learning_rate, "loss": run.loss}
            for run in tuning
        ],
        "in_full_at_other_rates": [
            {"name": run.model, "learning_rate": run.learning_rate, "loss": run.loss}
            for run in tried
        ],
    }


def _with_best_rates(runs: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Full runs of each model at one learning rate, that of its best; and those at other rates."""
    best: dict[tuple[str, int], Measured] = {}
    for run in runs:
        known = best.setdefault((run.model, run.history.step), run)
        if run.seed == known.seed and run.loss < known.loss:
            best[run.model, run.history.step] = run
    kept, tried = [], []
    for run in runs:
        has_best = run.learning_rate == best[run.model, run.history.step].learning_rate
        (kept if has_best else tried).append(run)
    return kept, tried


def _entry(runs: Sequence[Measured], name: str, steps: int) -> dict[str, Any]:
    own = [run for run in runs if run.model == name and run.history.step == steps]
    model = own[0].setting["model"]
    tokens = steps * own[0].history.tokens_per_step
    return {
        "name": name,
        "wiring": model["wiring"],
        "layers": model["num_hidden_layers"],
        "parameters": own[0].history.parameters,
        "learning_rate": own[0].learning_rate,
        "tokens": tokens,
        "tokens_per_parameter": tokens / own[0].history.parameters,
        "seeds": [_seed(runs, run) for run in own],
    }


def _seed(runs: Sequence[Measured], run: Measured) -> dict[str, Any]:
    """One run's losses, and what its perplexity is over the baseline's wherever that one is."""
    baseline = next((other for other in runs if _is_baseline_of(other, run)), None)
    theirs = {} if baseline is None else {p.step: p.loss for p in baseline.history.validation}
    per_step = run.history.tokens_per_step
    return {
        "seed": run.seed,
        "loss": run.loss,
        "losses": [
            {"tokens": point.step * per_step, "loss": point.loss}
            for point in run.history.validation
        ],
        "perplexity_over_standard_percent": [
            {
                "tokens": point.step * per_step,
                "percent": 100 * math.expm1(point.loss - theirs[point.step]),
            }
            for point in run.history.validation
            if point.step in theirs
        ],
    }


def _is_baseline_of(other: Measured, run: Measured) -> bool:
    layers = "num_hidden_layers"
    return (
        other.model.partition(",")[0] == BASELINE
        and other.setting["model"][layers] == run.setting["model"][layers]
        and (other.seed, other.history.step) == (run.seed, run.history.step)
    )


def write_summary(results: Path, found: dict[str, Any]) -> None:
    """Keep what ``summary`` gave."""
    write_json(results / _FILE, found)


def load_summary(results: Path = RESULTS) -> dict[str, Any] | None:
    """What ``write_summary`` wrote; None where nothing was trained in full yet."""
    file = results / _FILE
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def long_table() -> str:
    """A row for each model and length."""
    headings = (
        *("model", "layers", "tokens", "tokens a parameter", "learning rate", "seeds"),
        *("validation loss", "perplexity", "perplexity over standard"),
    )
    found = load_summary()
    if found is None:
        return _TO_COME
    return markers.markdown(headings, [_row(m) for m in found["models"]], numbers=True)


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    losses = [seed["loss"] for seed in model["seeds"]]
    return (
        model["name"].partition(",")[0],
        f"{model['layers']}",
        f"{model['tokens'] / 1e6:.1f}M",
        f"{model['tokens_per_parameter']:.1f}",
        f"{model['learning_rate']:g}",
        f"{len(losses)}",
        _range(losses, "{:.3f}"),
        f"{math.exp(sum(losses) / len(losses)):.2f}",
        _range(_at_the_end(model), "{:+.1f} %"),
    )


def _at_the_end(model: dict[str, Any]) -> list[float]:
    curves = [seed["perplexity_over_standard_percent"] for seed in model["seeds"]]
    return [curve[-1]["percent"] for curve in curves if curve]


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean = form.format(sum(values) / len(values))
    low, high = form.format(min(values)), form.format(max(values))
    return mean if low == high else f"{mean} ({low} to {high})"


def tuning_table() -> str:
    """Validation loss at a tenth of the length, by learning rate."""
    found = load_summary()
    if found is None:
        return _TO_COME
    tuning = found["tuning"]
    rates = sorted({entry["learning_rate"] for entry in tuning})
    names = dict.fromkeys(entry["name"] for entry in tuning)
    losses = {(entry["name"], entry["learning_rate"]): entry["loss"] for entry in tuning}
    rows = [
        (name, *(f"{losses[name, r]:.3f}" if (name, r) in losses else "" for r in rates))
        for name in names
    ]
    return markers.markdown(("model", *(f"{rate:g}" for rate in rates)), rows, numbers=True)


def other_rates_table() -> str:
    """Validation loss in full of what was also trained at another learning rate."""
    found = load_summary()
    if found is None:
        return _TO_COME
    names = {entry["name"] for entry in found["in_full_at_other_rates"]}
    rows = [
        (model["name"], f"{model['learning_rate']:g}", f"{model['seeds'][0]['loss']:.3f}")
        for model in found["models"]
        if model["name"] in names and model["tokens"] == min(m["tokens"] for m in found["models"])
    ]
    rows += [
        (entry["name"], f"{entry['learning_rate']:g}", f"{entry['loss']:.3f}")
        for entry in found["in_full_at_other_rates"]
    ]
    return markers.markdown(("model", "learning rate", "validation loss"), rows, numbers=True)


TABLES = {
    "parity long": long_table,
    "parity long tuning": tuning_table,
    "parity long rates": other_rates_table,
}


def draw(results: Path) -> None:
    """The difference in perplexity over tokens a parameter, a panel for each depth."""
    found = load_summary(results)
    if found is None:
        return
    models = found["models"]
    depths = sorted({model["layers"] for model in models})
    figure = Figure(figsize=(6.2 * len(depths), 4.6), layout="constrained")
    panels = figure.subplots(1, len(depths), squeeze=False, sharey=True)[0]
    for axes, layers in zip(panels, depths, strict=True):
        _draw_curves(axes, [model for model in models if model["layers"] == layers])
        axes.set_title(f"{layers} layers", fontsize=9)
    panels[0].set_ylabel("perplexity over the standard model's")
    with whole_file(results / "parity-long.png") as partial:
        figure.savefig(partial, dpi=150, format="png")


def _line_style(name: str) -> str:
    """What tells models of one wiring, and so of one colour, apart."""
    styles = {"keep-width": "--", "message_parts 2": "-.", "message_parts 4": ":"}
    return next((style for what, style in styles.items() if what in name), "-")


def _draw_curves(axes: Axes, models: Sequence[dict[str, Any]]) -> None:
    shortest = min(model["tokens"] for model in models)
    for model in models:
        name = model["name"].partition(",")[0]
        if name == BASELINE:
            continue
        for seed in model["seeds"]:
            curve = seed["perplexity_over_standard_percent"]
            axes.plot(
                [point["tokens"] / model["parameters"] for point in curve],
                [point["percent"] for point in curve],
                linestyle=_line_style(name),
                linewidth=1.4 if model["tokens"] == shortest else 0.8,
                color=WIRING_COLOURS[model["wiring"]],
                label=name if model["tokens"] == shortest and seed is model["seeds"][0] else None,
            )
    axes.axhline(0, color="#7f7f7f", linewidth=0.8)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:+.0f} %"))
    axes.set_xlabel("tokens a parameter")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
