"""What became of an adaptation: perplexities, scores and first tokens before and after it."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from krakenlm.adapt.plan import Plan
from krakenlm.adapt.probe import Probe, Sample
from krakenlm.adapt.report import AdaptReport, Stage
from krakenlm.bench.latency import Setup, measure
from krakenlm.bench.models import Contender
from krakenlm.bench.results import LatencyReport
from krakenlm.config import awaited, laid_out
from krakenlm.console import progress_bar
from krakenlm.environment import Environment, cores_here
from krakenlm.eval.model import pick_device
from krakenlm.eval.report import EvalReport
from krakenlm.integrations.rewiring import rewire
from krakenlm.train.history import History
from krakenlm.train.recipe import Recipe
from krakenlm.train.run_folder import RunFolder


class Measuring(NamedTuple):
    """What is measured beside the training.

    Attributes:
        sample: of held-out text that layers are ranked and models compared on.
        others: further samples that models are compared on.
        superglue: scores a model folder zero-shot; None where that is not asked.
        setups: of each link, how the first token is timed.
        device: where layers are ranked and perplexities measured.
    """

    sample: Sample
    others: tuple[Sample, ...]
    superglue: Callable[[Path], EvalReport] | None
    setups: tuple[Setup, ...]
    device: str


class Chosen(NamedTuple):
    """What was found out before training.

    Attributes:
        recipe: that the model is trained by.
        difference: see ``Probe.check_equal``.
        zero_shot: perplexities before training, by the layers that were late.
    """

    recipe: Recipe
    difference: float
    zero_shot: dict[str, float]


def report_on(
    plan: Plan, measuring: Measuring, chosen: Chosen, run: RunFolder, command: Sequence[str]
) -> AdaptReport:
    """Measure the models of a finished run.

    Args:
        plan: that it followed.
        measuring: what to measure.
        chosen: what was found out before it.
        run: the run.
        command: what was typed.
    """
    recipe, history = chosen.recipe, History.load(run.history)
    assert history is not None, "the run is finished"
    perplexity = {
        str(sample.data): _perplexities(plan, recipe, run, sample, measuring.device)
        for sample in (measuring.sample, *measuring.others)
    }
    return AdaptReport(
        command=tuple(command),
        model=str(plan.model),
        wiring=recipe.model.wiring,
        sublayers=plan.sublayers,
        late_layers=recipe.model.late_layers,
        num_hidden_layers=recipe.model.num_hidden_layers,
        difference_as_laid_out=chosen.difference,
        zero_shot=chosen.zero_shot,
        tokens=recipe.training.steps * history.tokens_per_step,
        seconds=history.speed["seconds"],
        perplexity=perplexity,
        by_sublayers=_by_sublayers(plan, recipe, run, measuring),
        superglue=_superglue(plan, recipe, run, measuring),
        latency=tuple(_latency(plan, recipe, setup) for setup in measuring.setups),
        environment=Environment.here(cores=len(cores_here())),
    )


def _perplexities(
    plan: Plan, recipe: Recipe, run: RunFolder, sample: Sample, device: str
) -> dict[Stage, float]:
    late, where = recipe.model.late_layer_indices, pick_device(device)
    before = Probe(plan.model, plan.config, sample, where)
    original, rewired = before.perplexity(()), before.perplexity(late)
    del before  # two models at once may be too many
    adapted = Probe(run.model, plan.config, sample, where).perplexity(late)
    return {"original": original, "rewired": rewired, "adapted": adapted}


def _by_sublayers(
    plan: Plan, recipe: Recipe, run: RunFolder, measuring: Measuring
) -> dict[str, float]:
    if len(plan.sublayers) == 1:
        return {}
    late = recipe.model.late_layer_indices
    where = pick_device(measuring.device)
    return {
        str(n): Probe(run.model, laid_out(plan.config, n), measuring.sample, where).perplexity(late)
        for n in plan.sublayers
    }


def _superglue(
    plan: Plan, recipe: Recipe, run: RunFolder, measuring: Measuring
) -> dict[Stage, EvalReport]:
    if measuring.superglue is None:
        return {}
    model = recipe.model
    with tempfile.TemporaryDirectory(prefix="krakenlm-adapt-") as scratch:
        rewired = Path(scratch) / "rewired"
        rewire(
            plan.model,
            rewired,
            wiring=model.wiring,
            num_sublayers=model.num_sublayers,
            message_parts=model.message_parts,
            late_layers=model.late_layers or "all",
        )
        return {
            "original": measuring.superglue(plan.model),
            "rewired": measuring.superglue(rewired),
            "adapted": measuring.superglue(run.model),
        }


def _latency(plan: Plan, recipe: Recipe, setup: Setup) -> LatencyReport:
    """Time the first token; weights do not matter for it, so that random ones are timed."""
    contenders = [
        Contender(config=laid_out(awaited(recipe.model), 1), label="original"),
        Contender(config=recipe.model, label="adapted"),
    ]
    with progress_bar() as bar:
        task = bar.add_task("timing the first token", total=setup.rounds)
        measured = measure(
            contenders,
            setup,
            title=f"{plan.model}: {setup.input_len}-token prompt, {setup.devices} processes",
            on_round=lambda: bar.advance(task),
        )
    assert measured is not None, "adapt starts its own ranks"
    return measured.report
