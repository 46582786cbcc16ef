"""A training run that is killed again and again ends as one that nobody disturbed.

``KILLS`` says how often; `make test-reliability` says 30. torchrun, which starts its processes
itself, is killed a fifth as often.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from safetensors.torch import load_file

import tiny
from forked import Forked
from krakenlm.train.run_folder import RunFolder
from running import KRAKENLM, TORCHRUN

pytestmark = [pytest.mark.reliability, pytest.mark.dist, pytest.mark.slow]

KILLS = int(os.environ.get("KILLS", "2"))
STEPS = 24
TRAIN = ("train", "recipe.toml")
BETWEEN_CPUS = Path(__file__).parents[1] / "dist" / "fsdp_between_cpus.py"
# To end after a kill, and to train without one.
SECONDS_TO_END, ENOUGH = 30, 600


class Training(Protocol):
    """One call of ``krakenlm train``."""

    def wait(self, seconds: float) -> int | None: ...

    def kill(self, victim: int, seconds: float) -> None: ...

    def stop(self) -> None: ...


class UnderTorchrun:
    """Two processes and torchrun, any of which may be the victim."""

    def __init__(self, folder: Path) -> None:
        with (folder / "log.txt").open("ab") as log:
            self._process = psutil.Popen(
                [sys.executable, *TORCHRUN, *KRAKENLM, *TRAIN],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self, seconds: float) -> int | None:
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(seconds)
        code = self._process.poll()
        return None if code is None else int(code)

    def kill(self, victim: int, seconds: float) -> None:
        everybody = [self._process, *self._process.children(recursive=True)]
        with contextlib.suppress(psutil.NoSuchProcess):
            everybody[victim % len(everybody)].kill()
        _, alive = psutil.wait_procs(everybody, timeout=seconds)
        assert alive == []

    def stop(self) -> None:
        if self._process.poll() is None:
            self.kill(0, SECONDS_TO_END)


STARTED = {
    "one process": lambda folder: Forked(folder, 1, TRAIN),
    "ddp": lambda folder: Forked(folder, 2, TRAIN),
    "fsdp": lambda folder: Forked(folder, 2, TRAIN, BETWEEN_CPUS),
    "ddp under torchrun": UnderTorchrun,
}


@contextlib.contextmanager
def training(folder: Path, parallel: str) -> Iterator[Training]:
    started = STARTED[parallel](folder)
    try:
        yield started
    finally:
        started.stop()


def train_undisturbed(folder: Path, parallel: str) -> None:
    with training(folder, parallel) as run:
        assert run.wait(ENOUGH) == 0, (folder / "log.txt").read_text()


def folder_with_recipe(parent: Path, name: str, data: Path, parallel: str) -> Path:
    """It saves behind every second step, so that many moments lie in a save."""
    folder = parent / name
    folder.mkdir()
    settings = {"steps": STEPS, "save_every": 2, "eval_every": 8}
    settings |= {"parallel": "fsdp"} if parallel == "fsdp" else {}
    text = tiny.recipe_text(data, Path("run"), **settings)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder


def losses(folder: Path) -> dict[str, object]:
    history = json.loads((folder / "run" / "history.json").read_text(encoding="utf-8"))
    return {name: history[name] for name in ("training", "validation")}


def moments(kills: int, seconds: float) -> Iterator[float]:
    """Seconds after a start, most of them behind what comes before the first step."""
    chosen = random.Random(0)
    for _ in range(kills):
        yield chosen.uniform(0.3, 1.0) * seconds


@pytest.mark.parametrize("parallel", STARTED)
def test_it_ends_with_the_very_losses_of_an_undisturbed_run(parallel, tmp_path, tiny_data, figure):
    kills = max(1, KILLS // 5) if parallel == "ddp under torchrun" else KILLS
    whole = folder_with_recipe(tmp_path, "whole", tiny_data, parallel)
    train_undisturbed(whole, parallel)  # once more, for the first start imports everything
    shutil.rmtree(whole / "run")
    begun = time.monotonic()
    train_undisturbed(whole, parallel)
    seconds = time.monotonic() - begun

    folder = folder_with_recipe(tmp_path, "killed", tiny_data, parallel)
    wanted, hits = losses(whole), 0
    for moment in moments(20 * kills, seconds):
        with training(folder, parallel) as run:
            ended = run.wait(moment)
            if ended is None:
                run.kill(hits, SECONDS_TO_END)
        if ended is None:
            hits += 1
            if (last := RunFolder(folder / "run").last_checkpoint()) is not None:
                load_file(last / "model.safetensors")
        else:
            assert ended == 0, (folder / "log.txt").read_text()
            assert losses(folder) == wanted
            shutil.rmtree(folder / "run")
        if hits >= kills:
            break
    train_undisturbed(folder, parallel)
    assert hits == kills
    assert losses(folder) == wanted
    name = "model/model.safetensors"
    theirs, ours = (load_file(each / "run" / name) for each in (whole, folder))
    assert theirs.keys() == ours.keys()
    assert all(bool((theirs[key] == ours[key]).all()) for key in theirs)
    figure(
        f"kill -9 at random moments of training, {parallel}",
        f"{hits} kills of one of its processes survived, losses and weights bit for bit those of "
        "an undisturbed run",
        f"{kills} kills",
    )
