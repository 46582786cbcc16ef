"""``torchrun --max-restarts``: training that lost a process goes on from its last checkpoint."""

import re
import signal
from pathlib import Path

import pytest

import tiny
from running import TORCHRUN

pytestmark = [pytest.mark.reliability, pytest.mark.dist, pytest.mark.slow]

STEPS = 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP"])
def test_training_goes_on_by_itself(start, tmp_path, tiny_data, figure, number):
    settings = {"steps": STEPS, "save_every": 20, "eval_every": 0}
    recipe = tiny.recipe_text(tiny_data, Path("run"), **settings)
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    torchrun = (*TORCHRUN, "--max-restarts", 1, "-m", "krakenlm")
    running = start("train", "recipe.toml", program=torchrun)
    running.wait_for(lambda: list(tmp_path.glob("run/checkpoints/*/complete")))
    ranks = [each for each in running.process.children() if "train" in each.cmdline()]
    (second,) = (each for each in ranks if each.environ()["RANK"] == "1")
    running.send(number, second)
    assert running.end(seconds=120) == 0, running.terminal
    begun = re.findall(r"going on from checkpoint-(\d+)", running.terminal)
    assert len(begun) == 1 and 0 < int(begun[0]) < STEPS
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    figure(
        f"{number.name} of a process under torchrun --max-restarts",
        f"went on from step {begun[0]} of {STEPS} by itself",
        "goes on from the last good checkpoint",
    )
