"""Which runs are there, and what did they learn from the same tokens?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from krakenlm.config import ModelConfig, count_parameters
from krakenlm.data.manifest import SPLITS
from krakenlm.errors import KrakenError
from krakenlm.train.history import History, Loss
from krakenlm.train.run_folder import RunFolder, resolved_recipe, schedule_of

State = Literal["finished", "running", "interrupted"]
# Deeper folders are a run's own, or somebody else's.
_DEPTH = 4
# Of a long run; more lines than this nobody reads.
_LINES_SHOWN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run's folder says.

    Attributes:
        name: the folder, as far as it tells this run from the others.
        state: ``interrupted`` is one that neither has its model nor a process that trains it.
        steps: of its recipe.
        scheduled_steps: until its learning rate stayed where it was; fewer than ``steps`` where
            the run was extended.
        history: so far.
        data: what its losses were measured on; losses of other data are no match for them.
    """

    name: str
    state: State
    steps: int
    scheduled_steps: int
    history: History
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Final:
    """A run at the last number of tokens at which all of them were measured.

    Attributes:
        run: its name.
        parameters: of its model.
        validation_loss: nats per token.
        perplexity: exp of that.
        perplexity_ratio: over the first run's; below 1 is better than that.
        perplexity_by_sublayers: where N was drawn, with each N; empty elsewhere.
    """

    run: str
    parameters: int
    validation_loss: float
    perplexity: float
    perplexity_ratio: float
    perplexity_by_sublayers: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs on the same tokens.

    Attributes:
        runs: in the order asked for.
        tokens: after which ``finals`` are taken.
        points: numbers of tokens at which all runs have a validation loss, and those losses.
        finals: one a run.
    """

    runs: tuple[Run, ...]
    tokens: int
    points: tuple[tuple[int, tuple[float, ...]], ...]
    finals: tuple[Final, ...]

    @property
    def extended(self) -> Sequence[Run]:
        """Runs with steps after their learning rate's schedule."""
        return [run for run in self.runs if run.scheduled_steps < run.steps]

    @property
    def curves(self) -> Sequence[tuple[int, tuple[float, ...]]]:
        """Points to print, evenly chosen, the last among them."""
        step = math.ceil(len(self.points) / _LINES_SHOWN)
        return self.points[::-1][::step][::-1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values: every run's whole history, and the comparison."""
        return {
            "schema_version": 1,
            "tokens": self.tokens,
            "validation": [
                {"tokens": tokens, "losses": list(losses)} for tokens, losses in self.points
            ],
            "runs": [
                {
                    **asdict(final),
                    "state": run.state,
                    "scheduled_steps": run.scheduled_steps,
                    "history": run.history.to_dict(),
                }
                for run, final in zip(self.runs, self.finals, strict=True)
            ],
        }


def load_run(folder: Path, name: str = "") -> Run:
    """Read a run's folder.

    Raises:
        KrakenError: there is no run in it, or its history is damaged.
    """
    run = RunFolder(folder)
    recipe = resolved_recipe(run.recipe_file)
    if recipe is None:
        raise KrakenError(f"{folder} holds no run: give a folder that `krakenlm train` wrote")
    try:
        model, settings = recipe["model"], recipe["training"]
        length = settings["sequence_length"] or model["max_position_embeddings"]
        data = {
            # Not the tokenizer's file: of the same tokens, whoever saved it, losses compare.
            "data": {split: recipe["data_sha256"][split] for split in SPLITS},
            "sequence_length": length,
            "validation sequences": settings["eval_batches"] * settings["batch_size"],
        }
        tokens = settings["batch_size"] * settings["gradient_accumulation"] * length
        schedule = schedule_of(recipe)
    except (KeyError, TypeError) as error:
        raise KrakenError(f"{run.recipe_file} is damaged ({error}): train again") from error
    history = History.load(run.history) or _nothing_yet(tokens, recipe["model"])
    return Run(
        name=name or str(folder),
        state=_state(run),
        steps=schedule.steps,
        scheduled_steps=schedule.scheduled,
        history=history,
        data=data,
    )


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several, each named by its folder's last part where that tells them apart."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [load_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def find_runs(folder: Path) -> list[Run]:
    """All runs in a folder and below it, by name.

    Raises:
        KrakenError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise KrakenError(f"{folder} is no folder: give one that runs are in")
    found = []
    for depth in range(_DEPTH):
        for recipe in folder.glob("*/" * depth + "recipe.json"):
            if resolved_recipe(recipe) is not None:
                name = str(recipe.parent.relative_to(folder))
                found.append(load_run(recipe.parent, folder.name if name == "." else name))
    if not found:
        raise KrakenError(f"{folder} holds no runs: make one with krakenlm train")
    return sorted(found, key=lambda run: run.name)


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side where all of them have a validation loss.

    Raises:
        KrakenError: fewer than two, or their losses were not measured on the same tokens.
    """
    if len(runs) < 2:
        raise KrakenError("one run has nothing to be compared with: give two or more")
    first, *others = runs
    for other in others:
        different = [key for key in first.data if first.data[key] != other.data[key]]
        if different:
            raise KrakenError(
                f"{other.name} and {first.name} do not have the same {different[0]}: their losses "
                "cannot be compared; train them from the same data with the same batches"
            )
    curves = [_by_tokens(run.history) for run in runs]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not shared:
        raise KrakenError(
            "the runs have no validation loss after the same number of tokens: let eval_every "
            "times the tokens of a step agree, or wait until both are finished"
        )
    points = tuple((tokens, tuple(curve[tokens] for curve in curves)) for tokens in shared)
    return Comparison(
        runs=tuple(runs), tokens=shared[-1], points=points, finals=_finals(runs, *points[-1])
    )


def _finals(runs: Sequence[Run], tokens: int, losses: Sequence[float]) -> tuple[Final, ...]:
    return tuple(
        Final(
            run=run.name,
            parameters=run.history.parameters,
            validation_loss=loss,
            perplexity=math.exp(loss),
            perplexity_ratio=math.exp(loss - losses[0]),
            perplexity_by_sublayers=_by_sublayers(run.history, tokens),
        )
        for run, loss in zip(runs, losses, strict=True)
    )


def _by_sublayers(history: History, tokens: int) -> dict[str, float]:
    return {
        n: math.exp(entry.loss)
        for n, entries in history.validation_by_sublayers.items()
        for entry in entries
        if entry.step * history.tokens_per_step == tokens
    }


def _by_tokens(history: History) -> dict[int, float]:
    return {entry.step * history.tokens_per_step: entry.loss for entry in history.validation}


def _state(run: RunFolder) -> State:
    if run.finished:
        return "finished"
    return "running" if run.is_running else "interrupted"


def _nothing_yet(tokens_per_step: int, model: dict[str, Any]) -> History:
    none: tuple[Loss, ...] = ()
    return History(
        tokens_per_step=tokens_per_step,
        parameters=count_parameters(ModelConfig.from_dict(model)),
        training=none,
        validation=none,
    )
