"""Summary, picture and tables of docs/parity.md, from the runs under docs/results.

A folder of results holds ``runs/NAME.json``, one a training run, ``parity.json``, what they say
together, and ``parity.png``.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

import markers
import recording
from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.files import whole_file, write_json
from krakenlm.strict import from_plain
from krakenlm.train.history import History

PAGE = recording.DOCS / "parity.md"
RESULTS = recording.RESULTS / "parity"
GPU_RESULTS = recording.RESULTS / "parity-gpu"
SUMMARY = "parity.json"
BASELINE = "standard"
# Where runs of a table are to come; what they are goes into it.
_MISSING = "The {} are still to come.\n"


def alone(sublayers: int) -> str:
    """The model of one shared stream that is trained with this N and no other."""
    return BASELINE if sublayers == 1 else f"shared {sublayers}-way"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One training run's result.

    Attributes:
        model: its name in the protocol.
        learning_rate: at the top of its schedule.
        seed: of weights and of the order of the data.
        history: losses over steps, size, speed.
        setting: all that the result depends on: configuration, hyper-parameters, tokens.
    """

    model: str
    learning_rate: float
    seed: int
    history: History
    setting: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Read one back."""
        return from_plain(cls, json.loads(path.read_text(encoding="utf-8")))

    @property
    def loss(self) -> float:
        """Of the validation split at the end, in nats per token, with the model's own N."""
        return self.history.validation[-1].loss

    @property
    def tuning_loss(self) -> float:
        """What a learning rate is chosen by: where N was drawn, the mean over each N."""
        of_each = self.history.validation_by_sublayers.values()
        return statistics.mean(losses[-1].loss for losses in of_each) if of_each else self.loss


def runs_in(results: Path) -> Path:
    """Where a folder of results keeps its runs."""
    return results / "runs"


def rates_by_loss(runs: Iterable[Measured], model: str) -> list[float]:
    """A model's learning rates, the best first: by the mean over all seeds that were trained.

    Only rates with as many seeds as any other count, since seeds differ.
    """
    losses: dict[float, list[float]] = {}
    for run in runs:
        if run.model == model:
            losses.setdefault(run.learning_rate, []).append(run.tuning_loss)
    most = max(map(len, losses.values()))
    full = [rate for rate, found in losses.items() if len(found) == most]
    return sorted(full, key=lambda rate: statistics.mean(losses[rate]))


def best_rate(runs: Iterable[Measured], model: str) -> float:
    """The learning rate of a model's lowest loss."""
    return rates_by_loss(runs, model)[0]


def next_rate(runs: Iterable[Measured], model: str) -> float | None:
    """What to try where a model's best learning rate is the lowest or the highest tried.

    One step of the grid further, in ratio; None where the best one has neighbours on both sides.
    """
    own = [run for run in runs if run.model == model]
    rates = sorted(run.learning_rate for run in own)
    best = best_rate(own, model)
    if len(rates) < 2 or rates[0] < best < rates[-1]:
        return None
    return best * (rates[0] / rates[1] if best == rates[0] else rates[-1] / rates[-2])


def summary(
    measured: Sequence[Measured], texts: Sequence[str], recipe: str, environment: dict[str, Any]
) -> dict[str, Any]:
    """Mean and spread over seeds of each model at its best learning rate, and the grid behind it.

    The difference in perplexity is taken seed by seed, each over the baseline of the same seed, so
    on the same tokens in the same order.
    """
    names = list(dict.fromkeys(run.model for run in measured))
    baseline = _seeds(measured, BASELINE)
    return {
        "schema_version": 1,
        "text": list(texts),
        "recipe": recipe,
        "environment": environment,
        "tokens": measured[0].history.step * measured[0].history.tokens_per_step,
        "models": [_entry(measured, name, baseline) for name in names],
    }


def _entry(
    measured: Sequence[Measured], name: str, baseline: dict[int, Measured]
) -> dict[str, Any]:
    own = [run for run in measured if run.model == name]
    seeds = _seeds(measured, name)
    losses = [run.loss for run in seeds.values()]
    differences = [
        100 * math.expm1(run.loss - baseline[seed].loss)
        for seed, run in seeds.items()
        if seed in baseline
    ]
    first = own[0]
    rates = {run.learning_rate: run.tuning_loss for run in own if run.seed == first.seed}
    best = next(iter(seeds.values())).learning_rate
    by_sublayers = [
        _with_sublayers(measured, seeds, n) for n in first.history.validation_by_sublayers
    ]
    return {
        "name": name,
        "parameters": first.history.parameters,
        "hidden_size": first.setting["model"]["hidden_size"],
        "head_dim": first.setting["model"]["head_dim"],
        "wiring": first.setting["model"]["wiring"],
        "grid": [{"learning_rate": rate, "loss": loss} for rate, loss in sorted(rates.items())],
        "best_learning_rate": best,
        "seeds": [{"seed": seed, "loss": run.loss} for seed, run in seeds.items()],
        "loss": _spread(losses),
        "perplexity": math.exp(statistics.mean(losses)),
        "perplexity_over_standard_percent": _spread(differences),
        "median_seconds": statistics.median(run.history.speed["seconds"] for run in own),
        **({"by_sublayers": by_sublayers} if by_sublayers else {}),
    }


def _with_sublayers(
    measured: Sequence[Measured], seeds: dict[int, Measured], n: str
) -> dict[str, Any]:
    """A model whose N was drawn, with one N, beside the model that was trained for that N alone."""
    losses = {seed: run.history.validation_by_sublayers[n][-1].loss for seed, run in seeds.items()}
    found = {
        "sublayers": int(n),
        "loss": _spread(list(losses.values())),
        "perplexity": math.exp(statistics.mean(losses.values())),
    }
    name = alone(int(n))
    if not any(run.model == name for run in measured):
        return found
    theirs = {seed: run.loss for seed, run in _seeds(measured, name).items()}
    differences = [100 * math.expm1(losses[s] - theirs[s]) for s in losses if s in theirs]
    beside = {"alone": name, "perplexity_alone": math.exp(statistics.mean(theirs.values()))}
    return {**found, **beside, "perplexity_over_alone_percent": _spread(differences)}


def _seeds(measured: Sequence[Measured], name: str) -> dict[int, Measured]:
    """A model's runs at its best learning rate, by seed."""
    best = best_rate(measured, name)
    own = (run for run in measured if run.model == name and run.learning_rate == best)
    return {run.seed: run for run in own}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "least": min(values), "most": max(values)}


def write_summary(results: Path, found: dict[str, Any]) -> None:
    """Keep what ``summary`` gave."""
    write_json(results / SUMMARY, found)


def load_summary(results: Path = RESULTS) -> dict[str, Any]:
    """What ``write_summary`` wrote."""
    found: dict[str, Any] = json.loads((results / SUMMARY).read_text(encoding="utf-8"))
    return found


def parity_table(results: Path = RESULTS) -> str:
    """A row a model."""
    headings = (
        *("model", "hidden_size", "heads of", "parameters", "learning rate", "validation loss"),
        *("perplexity", "perplexity over standard"),
    )
    rows = [
        (
            model["name"],
            f"{model['hidden_size']}",
            f"{model['head_dim']}",
            f"{model['parameters']:,}",
            f"{model['best_learning_rate']:g}",
            _range(model["loss"], "{:.3f}"),
            f"{model['perplexity']:.1f}",
            _range(model["perplexity_over_standard_percent"], "{:+.1f} %"),
        )
        for model in load_summary(results)["models"]
    ]
    return markers.markdown(headings, rows, numbers=True)


def degrees_table() -> str:
    """A row for each N that was drawn: perplexity beside that of a model with that N alone."""
    entries = [
        (model["name"], entry)
        for model in load_summary()["models"]
        for entry in model.get("by_sublayers", [])
        if "alone" in entry
    ]
    if not entries:
        return _MISSING.format("runs of the model whose N is drawn")
    headings = ("model", "N", "trained for that N alone", "N drawn", "difference")
    rows = [
        (
            name,
            f"{entry['sublayers']}",
            f"{entry['perplexity_alone']:.1f}",
            f"{entry['perplexity']:.1f}",
            _range(entry["perplexity_over_alone_percent"], "{:+.1f} %"),
        )
        for name, entry in entries
    ]
    return markers.markdown(headings, rows, numbers=True)


def gpu_table() -> str:
    """The rows of a run on a GPU."""
    if not (GPU_RESULTS / SUMMARY).is_file():
        return _MISSING.format("runs on a GPU")
    return parity_table(GPU_RESULTS)


def grid_table() -> str:
    """Validation loss of the first seed at every learning rate that a model was trained with."""
    models = [model for model in load_summary()["models"] if len(model["grid"]) > 1]
    grids = {
        model["name"]: {entry["learning_rate"]: entry["loss"] for entry in model["grid"]}
        for model in models
    }
    rates = sorted(set().union(*grids.values()))
    rows = [
        (name, *(f"{grid[rate]:.3f}" if rate in grid else "" for rate in rates))
        for name, grid in grids.items()
    ]
    return markers.markdown(("model", *(f"{rate:g}" for rate in rates)), rows, numbers=True)


def _range(values: dict[str, float], form: str) -> str:
    mean, least, most = (form.format(values[key]) for key in ("mean", "least", "most"))
    return mean if least == most else f"{mean} ({least} to {most})"


TABLES = {
    "parity": parity_table,
    "parity grid": grid_table,
    "parity degrees": degrees_table,
    "parity gpu": gpu_table,
}


def draw(results: Path) -> None:
    """The difference in perplexity, and the loss over learning rates."""
    models = load_summary(results)["models"]
    height = 1.4 + 0.34 * len(models)
    tuned = [model for model in models if len(model["grid"]) > 1]
    figure = Figure(figsize=(10.5 if tuned else 6.3, height), layout="constrained")
    if tuned:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_grid(right, tuned)
    else:
        left = figure.subplots()
    _draw_differences(left, models)
    with whole_file(results / "parity.png") as partial:
        figure.savefig(partial, dpi=150, format="png")


def _draw_differences(axes: Axes, models: Sequence[dict[str, Any]]) -> None:
    for row, model in enumerate(models):
        over = model["perplexity_over_standard_percent"]
        colour = WIRING_COLOURS[model["wiring"]]
        axes.plot([over["least"], over["most"]], [row, row], color=colour, linewidth=5, alpha=0.35)
        axes.plot(over["mean"], row, "o", color=colour)
    axes.axvline(0, color="#7f7f7f", linewidth=0.8)
    axes.set_yticks(range(len(models)), [model["name"] for model in models])
    axes.invert_yaxis()
    axes.set_xlabel("perplexity over the standard model's,\nmean and range over seeds")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:+.0f} %"))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_grid(axes: Axes, tuned: Sequence[dict[str, Any]]) -> None:
    ends: list[tuple[float, float, str]] = []
    for model in tuned:
        rates, losses = zip(
            *((entry["learning_rate"], entry["loss"]) for entry in model["grid"]), strict=True
        )
        style = "--" if "keep-width" in model["name"] else "-"
        axes.plot(rates, losses, style, marker="o", color=WIRING_COLOURS[model["wiring"]])
        ends.append((losses[-1], rates[-1], model["name"].removeprefix("kraken ")))
    _label_apart(axes, ends)
    axes.set_xscale("log")
    rates = sorted({entry["learning_rate"] for model in tuned for entry in model["grid"]})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation loss, first seed")
    axes.spines[["top", "right"]].set_visible(False)


def _label_apart(axes: Axes, ends: list[tuple[float, float, str]]) -> None:
    """Write each curve's name behind its last point, and none over another."""
    low, high = axes.get_ylim()
    free = low
    for loss, rate, name in sorted(ends):
        free = max(free, loss)
        axes.text(rate * 1.1, free, name, fontsize=6.5, va="center")
        free += (high - low) / 36
