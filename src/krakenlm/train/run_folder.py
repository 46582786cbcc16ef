"""The folder of a training run: recipe, checkpoints, history, the finished model.

::

    RUN/recipe.json        the resolved recipe
    RUN/checkpoints/       Trainer's checkpoints; only those marked complete are used
    RUN/history.json       losses over steps
    RUN/model/             the trained model with its tokenizer, once training is over
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.train.recipe import Recipe

_COMPLETE = "complete"


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

    def claim(self, recipe: Recipe, *, restart: bool) -> None:
        """Take the folder for this recipe, or refuse one that another recipe made.

        Raises:
            KrakenError: the folder belongs to another recipe, or holds something else.
        """
        resolved = json.loads(json.dumps(recipe.to_dict()))
        file = self.path / "recipe.json"
        if restart and file.is_file():
            shutil.rmtree(self.path)
        if file.is_file():
            different = _differences(json.loads(file.read_text(encoding="utf-8")), resolved)
            if different:
                raise KrakenError(
                    f"{self.path} holds a run of another recipe ({different}): choose another "
                    "output, or --restart to discard that run"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise KrakenError(f"{self.path} is not empty and holds no run: choose another output")
        else:
            write_json(file, resolved)

    def mark_complete(self, step: int) -> None:
        """Say that the checkpoint of this step is whole."""
        (self.checkpoints / f"checkpoint-{step}" / _COMPLETE).touch()

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = [path for path in self._all_checkpoints() if (path / _COMPLETE).exists()]
        return max(whole, key=_step_of, default=None)

    def remove_partial_checkpoints(self) -> None:
        """Remove what an interrupted save left behind."""
        for path in self._all_checkpoints():
            if not (path / _COMPLETE).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _all_checkpoints(self) -> list[Path]:
        return [path for path in self.checkpoints.glob("checkpoint-*") if path.is_dir()]


def _step_of(checkpoint: Path) -> int:
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
