"""A training run that is killed again and again ends as one that nobody disturbed.

``KILLS`` says how often; `make test-reliability` says 30.
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

import psutil
import pytest
from safetensors.torch import load_file

import tiny
from krakenlm.train.run_folder import RunFolder

pytestmark = [pytest.mark.reliability, pytest.mark.dist, pytest.mark.slow]

KILLS = int(os.environ.get("KILLS", "2"))
STEPS = 40
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
BETWEEN_CPUS = Path(__file__).parents[1] / "dist" / "fsdp_between_cpus.py"
LAUNCHERS = {
    "one process": ("-m", "krakenlm"),
    "ddp": (*TORCHRUN, "-m", "krakenlm"),
    "fsdp": (*TORCHRUN, str(BETWEEN_CPUS)),
}


class Command:
    """One call of ``krakenlm train``."""

    def __init__(self, folder: Path, parallel: str) -> None:
        log = folder / "log.txt"
        self._log = log.open("wb")
        self.process = psutil.Popen(
            [sys.executable, *LAUNCHERS[parallel], "train", "recipe.toml"],
            cwd=folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def kill(self, victim: int = 0) -> None:
        """One process, be it torchrun or one of its own: all others end by themselves."""
        if self.process.poll() is not None:
            return
        everybody = [self.process, *self.process.children(recursive=True)]
        with contextlib.suppress(psutil.NoSuchProcess):
            everybody[victim % len(everybody)].kill()
        _, alive = psutil.wait_procs(everybody, timeout=30)
        assert alive == []

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()


def folder_with_recipe(parent: Path, name: str, data: Path, parallel: str) -> Path:
    """It saves behind every second step, so that many moments lie in a save."""
    folder = parent / name
    folder.mkdir()
    settings = {"steps": STEPS, "save_every": 2, "eval_every": 10}
    settings |= {"parallel": "fsdp"} if parallel == "fsdp" else {}
    text = tiny.recipe_text(data, Path("run"), **settings)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder


def losses(folder: Path) -> dict[str, object]:
    history = json.loads((folder / "run" / "history.json").read_text(encoding="utf-8"))
    return {name: history[name] for name in ("training", "validation")}


def moments(kills: int, seconds: float) -> Iterator[float]:
    """Seconds after a start, most of them behind the imports."""
    chosen = random.Random(0)
    for _ in range(kills):
        yield chosen.uniform(0.3, 1.0) * seconds


@pytest.mark.parametrize("parallel", LAUNCHERS)
def test_it_ends_with_the_very_losses_of_an_undisturbed_run(parallel, tmp_path, tiny_data, figure):
    whole = folder_with_recipe(tmp_path, "whole", tiny_data, parallel)
    begun = time.monotonic()
    with Command(whole, parallel) as command:
        assert command.process.wait(600) == 0, (whole / "log.txt").read_text()
    seconds = time.monotonic() - begun

    folder = folder_with_recipe(tmp_path, "killed", tiny_data, parallel)
    wanted, hits = losses(whole), 0
    for moment in moments(20 * KILLS, seconds):
        with Command(folder, parallel) as command:
            with contextlib.suppress(psutil.TimeoutExpired):
                command.process.wait(moment)
            ended = command.process.poll()
            command.kill(hits)
        if ended is None:
            hits += 1
            run = RunFolder(folder / "run")
            if (last := run.last_checkpoint()) is not None:
                load_file(last / "model.safetensors")
        else:
            assert ended == 0, (folder / "log.txt").read_text()
            assert losses(folder) == wanted
            if hits >= KILLS:
                break
            shutil.rmtree(folder / "run")
        if hits >= KILLS:
            break
    with Command(folder, parallel) as command:
        assert command.process.wait(600) == 0, (folder / "log.txt").read_text()
    assert hits == KILLS
    assert losses(folder) == wanted
    name = "model/model.safetensors"
    theirs, ours = (load_file(each / "run" / name) for each in (whole, folder))
    assert theirs.keys() == ours.keys()
    assert all(bool((theirs[key] == ours[key]).all()) for key in theirs)
    figure(
        f"kill -9 at random moments of training, {parallel}",
        f"{hits} kills of one of its processes survived, losses and weights bit for bit those of "
        "an undisturbed run",
        "30 kills",
    )
