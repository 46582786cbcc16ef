"""The whole of an adaptation: check, rank, choose, train, measure."""

from collections.abc import Sequence
from pathlib import Path

from krakenlm.adapt.memory import bytes_needed
from krakenlm.adapt.plan import Plan
from krakenlm.adapt.probe import Probe, Sample
from krakenlm.adapt.report import AdaptReport
from krakenlm.adapt.results import Chosen, Measuring, report_on
from krakenlm.adapt.sensitivity import Meter, described
from krakenlm.console import notes, progress_bar
from krakenlm.data.tokens import open_split
from krakenlm.errors import KrakenError
from krakenlm.eval.model import pick_device
from krakenlm.files import write_json
from krakenlm.ranks.launch import under_torchrun
from krakenlm.train.recipe import Recipe
from krakenlm.train.trainer import train


def adapt(plan: Plan, measuring: Measuring, command: Sequence[str]) -> AdaptReport:
    """Adapt a model; what another call has ranked and trained is not done again, only measured.

    Args:
        plan: what is adapted, and to what.
        measuring: what is measured of it.
        command: what was typed, for the report.

    Raises:
        KrakenError: model, data and plan do not fit each other, or a run of another plan lies in
            the output folder.
    """
    if under_torchrun():
        raise KrakenError(
            "adapt is one process: for several give `krakenlm train` a recipe with a table [adapt]"
        )
    if plan.out.is_dir() and not _is_ours(plan.out):
        raise KrakenError(f"{plan.out} is not empty and holds no adaptation: choose another --out")
    chosen = _choose(plan, measuring)
    _introduce(chosen.recipe)
    run = train(chosen.recipe)
    report = report_on(plan, measuring, chosen, run, command)
    write_json(plan.out / "adapt.json", report.to_json())
    return report


def _is_ours(out: Path) -> bool:
    return {path.name for path in out.iterdir()} <= {"run", "sensitivity.json", "adapt.json"}


def _choose(plan: Plan, measuring: Measuring) -> Chosen:
    """Check the layout, rank the layers where that is needed, and choose the late ones."""
    probe = Probe(plan.model, plan.config, measuring.sample, pick_device(measuring.device))
    difference = probe.check_equal()
    notes.print(
        f"laid out for {plan.config.num_sublayers} branches, all sums awaited: logits differ from "
        f"the original's by {difference:.1e} of the largest",
        markup=False,
    )
    layers = plan.config.num_hidden_layers
    meter = Meter(probe, _what(plan, measuring.sample), plan.out / "sensitivity.json")
    ranking: Sequence[int] = range(layers)
    if plan.late.needs_ranking:
        ranking = _ranked(meter, layers)
    late = plan.late.choose(ranking, meter.perplexity)
    return Chosen(plan.recipe(late), difference, meter.found.late)


def _what(plan: Plan, sample: Sample) -> str:
    """What sensitivities are of, so that those of something else are not taken for them."""
    digest = open_split(sample.data, sample.split, verify=False).info.sha256
    layout = plan.config.to_dict()
    return f"{plan.model}, {layout}, {sample.windows}x{sample.window} tokens of {digest}"


def _ranked(meter: Meter, layers: int) -> list[int]:
    """All layers, those first that mind least; said as a list."""
    with progress_bar() as bar:
        for layer in bar.track(range(layers), description="each layer late alone"):
            meter.perplexity([layer])
    ranking = meter.found.ranking(layers)
    least, most = (meter.found.late[str(ranking[end])] for end in (0, -1))
    notes.print(
        f"perplexity {meter.perplexity([]):.2f}; with one layer late {least:.2f} to {most:.2f}; "
        f"those that mind least first: {', '.join(map(str, ranking))}",
        markup=False,
    )
    return ranking


def _introduce(recipe: Recipe) -> None:
    late = recipe.model.late_layer_indices
    gib = bytes_needed(recipe) / 1024**3
    notes.print(f"{described(late)}; training them needs about {gib:.1f} GiB", markup=False)
