"""The folder of a training run: recipe, checkpoints, history, the finished model.

::

    RUN/recipe.json        the resolved recipe, and the sha256 of the tokens it stands for
    RUN/checkpoints/       Trainer's checkpoints; only those marked complete are used
    RUN/history.json       losses over steps, and speed; written now and then while training lasts
    RUN/model/             the trained model with its tokenizer, once training is over
    RUN/model-at-STEP/     what model/ was before the run was extended after that step

A run may be moved, and so may its data: paths are written down and not compared.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krakenlm.config import ModelConfig
from krakenlm.console import print_note
from krakenlm.data.manifest import Manifest
from krakenlm.errors import KrakenError
from krakenlm.files import LOCK, hold, is_held, sync, sync_folder, write_json
from krakenlm.train.recipe import Recipe, Training

_COMPLETE = "complete"
_DATA = "data_sha256"
# Where a run and its tokens lie, and what is kept and told of it: another run learns the same.
_PLACES = {"data", "output"}
_KEPT_AND_TOLD = {"keep_checkpoints", "on_full_disk", "save_every", "tensorboard", "wandb"}


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run and what they say about it."""

    path: Path

    @property
    def model(self) -> Path:
        """Where the finished model is, or will be."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where Trainer keeps its checkpoints."""
        return self.path / "checkpoints"

    @property
    def history(self) -> Path:
        """Losses over steps, as JSON."""
        return self.path / "history.json"

    @property
    def finished(self) -> bool:
        """Whether the model is trained."""
        return self.model.is_dir() and self.history.is_file()

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe, as JSON."""
        return self.path / "recipe.json"

    @property
    def is_running(self) -> bool:
        """Whether a process on this machine, or on one that shares its locks, trains here now."""
        return is_held(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training here; the system lets go when this one ends.

        Raises:
            KrakenError: another process trains here.
        """
        with hold(self.path, self._busy) as kept:
            if not kept:
                print_note(
                    f"note: {self.path} lies on a file system without locks: nothing keeps a "
                    "second krakenlm from training there"
                )
            yield

    def claim(
        self, recipe: Recipe, manifest: Manifest, *, restart: bool = False, extend: bool = False
    ) -> Recipe:
        """Take the folder for this recipe and these tokens, or refuse one that others made.

        Args:
            recipe: what is to be trained.
            manifest: of its data; other tokens under the same name make another run.
            restart: discard the run that is there.
            extend: the recipe may have more steps than the run that is there.

        Returns:
            The recipe to follow: of a run that was extended, with the schedule that it had.

        Raises:
            KrakenError: the folder belongs to another recipe, is in use, or holds something else.
        """
        found = resolved_recipe(self.recipe_file)
        if found is not None and self.is_running:
            raise KrakenError(self._busy)
        if found is None:
            self._check_empty(extend)
        elif restart:
            self._discard()
            found = None
        else:
            recipe = self._go_on_with(found, recipe, manifest, extend)
        resolved = _resolved(recipe, manifest)
        if resolved != found:
            write_json(self.recipe_file, resolved)
        return recipe

    def _check_empty(self, extend: bool) -> None:
        """Refuse to begin a run in a folder that holds something else."""
        if self.path.is_dir() and any(path.name != LOCK for path in self.path.iterdir()):
            raise KrakenError(f"{self.path} is not empty and holds no run: choose another output")
        if extend:
            raise KrakenError(
                f"{self.path} holds no run that --extend could go on with: name the folder of one "
                "as output, or leave --extend out"
            )

    def _go_on_with(
        self, found: dict[str, Any], recipe: Recipe, manifest: Manifest, extend: bool
    ) -> Recipe:
        """The recipe to follow for the run that is there, unless it is another recipe's."""
        before = schedule_of(found)
        recipe = _with_schedule_of(before, recipe)
        settings = recipe.training
        wanted = _resolved(recipe, manifest)
        wanted["training"]["steps"] = min(before.steps, settings.steps)
        old, new = _what_it_learns(found), _what_it_learns(wanted)
        if settings.steps < before.steps and not settings.schedule_steps:
            # Fewer steps are named, and not what follows from them.
            new["training"]["schedule_steps"] = old["training"]["schedule_steps"]
        if different := _differences(old, new):
            raise KrakenError(
                f"{self.path} holds a run of another recipe ({different}): choose another "
                "output, or --restart to discard that run"
            )
        if recipe.training.steps > before.steps:
            self._extend(before.steps, recipe, extend)
        return recipe

    def _extend(self, steps: int, recipe: Recipe, extend: bool) -> None:
        """Make room for more steps, or say why there can be none."""
        settings = recipe.training
        if not extend:
            raise KrakenError(
                f"{self.path} holds a run of {steps} steps, and the recipe has {settings.steps}: "
                f"--extend goes on to step {settings.steps} at the learning rate "
                f"{settings.last_learning_rate:g}, which its schedule ends at; or choose another "
                "output, or --restart to discard that run"
            )
        if not settings.last_learning_rate:
            raise KrakenError(
                f"{self.path} cannot be extended: its learning rate ended at 0 "
                "(min_learning_rate_ratio = 0), where nothing is learned: choose another output"
            )
        if self.finished:
            if self.last_checkpoint() is None:
                raise KrakenError(
                    f"{self.path} cannot be extended: it kept no checkpoint (save_every = 0): "
                    "choose another output"
                )
            kept = self.path / f"model-at-{steps}"
            if kept.is_dir():  # an interruption came before the recipe was written
                shutil.rmtree(kept)
            self.model.replace(kept)

    def mark_complete(self, step: int) -> None:
        """Say that the checkpoint of this step is whole, once it is on the disk."""
        checkpoint = self.checkpoints / f"checkpoint-{step}"
        sync_folder(checkpoint)
        (checkpoint / _COMPLETE).touch()
        sync(checkpoint)

    def remove_old_checkpoints(self, keep: int) -> None:
        """Remove all but the newest."""
        for path in sorted(self._all_checkpoints(), key=step_of)[:-keep]:
            (path / _COMPLETE).unlink(missing_ok=True)  # first: an interruption leaves half of it
            shutil.rmtree(path, ignore_errors=True)

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = [path for path in self._all_checkpoints() if (path / _COMPLETE).exists()]
        return max(whole, key=step_of, default=None)

    def remove_partial_checkpoints(self) -> None:
        """Remove what an interrupted save left behind."""
        for path in self._all_checkpoints():
            if not (path / _COMPLETE).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _discard(self) -> None:
        """Remove what runs put here, and nothing else."""
        for path in (self.checkpoints, self.model, *self.path.glob("model-at-*")):
            shutil.rmtree(path, ignore_errors=True)
        self.history.unlink(missing_ok=True)
        self.recipe_file.unlink()

    @property
    def _busy(self) -> str:
        return f"{self.path}: another process trains here: wait, or stop it first"

    def _all_checkpoints(self) -> list[Path]:
        return [path for path in self.checkpoints.glob("checkpoint-*") if path.is_dir()]


def resolved_recipe(path: Path) -> dict[str, Any] | None:
    """What ``claim`` wrote; None where the file is missing or another program's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    keys = {field.name for field in dataclasses.fields(Recipe)} | {_DATA}
    # Runs of earlier versions adapt nothing.
    is_recipe = isinstance(values, dict) and {*values, "adapt"} == keys
    return {"adapt": None, **values} if is_recipe else None


@dataclass(frozen=True)
class Schedule:
    """How long a run learns.

    Attributes:
        steps: of the recipe.
        scheduled: steps that the learning rate's schedule runs over; fewer where the run was
            extended.
    """

    steps: int
    scheduled: int


def schedule_of(resolved: dict[str, Any]) -> Schedule:
    """Of a resolved recipe, as plain values."""
    settings = resolved["training"]
    return Schedule(settings["steps"], settings.get("schedule_steps", 0) or settings["steps"])


def _with_schedule_of(before: Schedule, recipe: Recipe) -> Recipe:
    """The recipe with the schedule of a run that had fewer steps, or was given more before."""
    settings = recipe.training
    longer = settings.steps > before.scheduled and settings.steps >= before.steps
    if settings.schedule_steps or not longer:
        return recipe
    extended = dataclasses.replace(settings, schedule_steps=before.scheduled)
    return dataclasses.replace(recipe, training=extended)


def _resolved(recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    """What ``recipe.json`` says, as JSON gives it back."""
    values = {**recipe.to_dict(), _DATA: _identity(manifest)}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _what_it_learns(resolved: dict[str, Any]) -> dict[str, Any]:
    """What makes two recipes one run: not where it lies, nor what is kept and told of it.

    Keys that an earlier version did not write have their defaults.
    """
    values = {key: value for key, value in resolved.items() if key not in _PLACES}
    settings = {field.name: field.default for field in dataclasses.fields(Training)}
    settings |= values["training"]
    if settings["schedule_steps"] == settings["steps"]:
        settings["schedule_steps"] = 0
    values["training"] = {k: v for k, v in settings.items() if k not in _KEPT_AND_TOLD}
    values["model"] = {**ModelConfig().to_dict(), **values["model"]}
    # The same tokens came from the same tokenizer, whoever saved its file since.
    values[_DATA] = {key: value for key, value in values[_DATA].items() if key != "tokenizer"}
    return values


def _identity(manifest: Manifest) -> dict[str, str]:
    """What tells these tokens from others prepared in the same folder."""
    return {
        "train": manifest.splits.train.sha256,
        "validation": manifest.splits.validation.sha256,
        "tokenizer": manifest.tokenizer.sha256,
    }


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was taken at."""
    return int(checkpoint.name.rpartition("-")[2])


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first few keys whose values differ, for people."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = _differences(before, after)
            changed += [f"{key}.{part}" for part in inner.split(", ") if part]
        elif before != after:
            changed.append(f"{key} {before!r} is now {after!r}")
    return ", ".join(changed[:4])
