"""Does what a wiring gains or loses in perplexity close, stay or turn round as training goes on?

    nice python scripts/parity_long.py --text openwebtext.jsonl.gz enwiki.jsonl.gz
    python scripts/parity_long.py --draw

The recipe's standard model and its rivals learn from the same tokens in the same order, with the
losses kept every half million tokens. Learning rates are chosen at a tenth of the length; then
every model is trained in full with one seed; the standard model and the best two of those that hide
their sums with further seeds, with twice the tokens, and with twice the layers. It takes many
hours: what is trained is kept under docs/results/parity-long, and an interrupted protocol goes on
from its runs' last checkpoints. ``--draw`` trains nothing.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import parity
import parity_long_page as page
import parity_models
import parity_page
import recording
from krakenlm.config import ModelConfig, are_hidden
from parity import Job, Protocol
from parity_models import Model
from parity_page import BASELINE, Measured, best_rate

MODELS = (
    Model(BASELINE),
    parity_models.shared(4),
    *(parity_models.parted(4, parts) for parts in (2, 4)),
    Model("lagged", ("model.wiring=lagged",)),
    Model("lagged-layer", ("model.wiring=lagged-layer",)),
    *(parity_models.kraken(4, rule) for rule in ("published", "keep-width")),
    Model("ladder", ("model.wiring=ladder",)),
    Model("parallel", ("model.wiring=parallel",)),
)


@dataclass(frozen=True)
class Lengths:
    """Steps of a run.

    Attributes:
        full: of the comparison.
        tuning: of a run that chooses a learning rate.
        double: of the longest ones.
    """

    full: int
    tuning: int
    double: int


def deeper(model: Model, layers: int) -> Model:
    """The same model with another number of layers, at the learning rate found without it."""
    changes = (*model.changes, f"model.num_hidden_layers={layers}")
    return Model(f"{model.name}, {layers} layers", changes, model.name)


def hides_sums(run: Measured) -> bool:
    """Whether compute hides any AllReduce of the model; the price of that is the question."""
    return any(are_hidden(ModelConfig.from_dict(run.setting["model"])))


def run_all(
    protocol: Protocol,
    models: Sequence[Model],
    rates: Sequence[float],
    seeds: Sequence[int],
    lengths: Lengths,
    layers: int,
    keep: Callable[[Sequence[Measured]], None],
) -> list[Measured]:
    """Train all stages; ``keep`` hears what is there after each.

    The first model, which all others are held to, is trained in full at each learning rate that one
    of them has chosen, and has the best of them from there on.

    Args:
        protocol: what trains.
        models: the first one is what the others are held to.
        rates: learning rates to choose from.
        seeds: the first one is every model's, the others those of the baseline and the best two.
        lengths: of the runs.
        layers: of the deeper models.
        keep: writes a summary.
    """
    first, *others = seeds
    tuned = protocol.train(
        [Job(model, rate, first, lengths.tuning) for model in models for rate in rates],
        "learning rates",
    )
    rate_of = {model.name: best_rate(tuned, model.name) for model in models}

    def job(model: Model, seed: int, steps: int) -> Job:
        return Job(model, rate_of[model.rate_of or model.name], seed, steps)

    done = protocol.train([job(model, first, lengths.full) for model in models], "in full")
    baseline = models[0]
    # A tenth of the length, with a tenth of the warm-up, may forbid a rate that is good in full.
    others_like = sorted(set(rate_of.values()) - {rate_of[baseline.name]})
    again = [Job(baseline, rate, first, lengths.full) for rate in others_like]
    tried = [done[0], *protocol.train(again, "the baseline at its rivals' rates")]
    rate_of[baseline.name] = best_rate(tried, baseline.name)
    tuned += [run for run in tried if run.learning_rate != rate_of[baseline.name]]
    done[0] = min(tried, key=lambda run: run.loss)
    keep([*tuned, *done])
    rivals = [pair for pair in zip(models[1:], done[1:], strict=True) if hides_sums(pair[1])]
    rivals.sort(key=lambda pair: pair[1].loss)
    best = [baseline, *(model for model, _ in rivals[:2])]
    stages = {
        "other seeds": [job(model, seed, lengths.full) for seed in others for model in best],
        "twice the tokens": [job(model, first, lengths.double) for model in best],
        "twice the layers": [job(deeper(model, layers), first, lengths.full) for model in best],
    }
    for title, jobs in stages.items():
        done += protocol.train(jobs, title)
        keep([*tuned, *done])
    return [*tuned, *done]


def _kept_of_others(measured: Sequence[Measured], results: Path) -> list[Measured]:
    """What earlier calls with other learning rates trained of the same models and tokens."""

    def place(run: Measured) -> tuple[object, ...]:
        return run.model, run.learning_rate, run.seed, run.history.step

    known, models = {place(run) for run in measured}, {run.model for run in measured}
    data = measured[0].setting["data"]
    kept = map(Measured.load, sorted(parity_page.runs_in(results).glob("*.json")))
    return [
        run
        for run in kept
        if run.model in models and place(run) not in known and run.setting["data"] == data
    ]


def train(options: argparse.Namespace) -> None:
    """Train what is missing, and sum up after each stage."""
    protocol, results = parity.prepared(options), options.results.resolve()
    recipe = parity.read_recipe(options.recipe, lambda data: 0)
    full = recipe.training.steps
    lengths = Lengths(full=full, tuning=full // 10, double=2 * full)

    def keep(measured: Sequence[Measured]) -> None:
        environment = recording.environment()["environment"]
        texts = [text.name for text in options.text]
        everything = [*measured, *_kept_of_others(measured, results)]
        page.write_summary(results, page.summary(everything, full, texts, environment))

    run_all(
        protocol,
        MODELS,
        options.learning_rates,
        options.seeds,
        lengths,
        2 * recipe.model.num_hidden_layers,
        keep,
    )


if __name__ == "__main__":
    recording.measure_and_draw(
        parity.protocol_options(__doc__, "parity-long", [2e-3, 4e-3], page.RESULTS),
        train,
        pages=[page.PAGE],
        tables=page.TABLES,
        pictures=lambda options: page.draw(options.results.resolve()),
    )
