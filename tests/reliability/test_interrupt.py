"""Ctrl-C, SIGTERM and a killed rank: every process ends, and no half of a file is left."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from krakenlm.train.run_folder import RunFolder, step_of
from running import LONG, SECONDS_TO_END, Running

pytestmark = [pytest.mark.reliability, pytest.mark.dist]

INTERRUPTED = "krakenlm: interrupted: nothing half-written was left behind"


CTRL_C_SECONDS = 3.0


@pytest.fixture
def ctrl_c(figure) -> Callable[[Running, str], None]:
    """Sends it, and puts down how long the last process took to end."""

    def interrupt(running: Running, what: str) -> None:
        running.send(signal.SIGINT)
        assert running.end() == 130
        figure(f"Ctrl-C while {what}", f"{running.seconds:.1f} s", f"{CTRL_C_SECONDS:.0f} s")
        assert running.seconds < CTRL_C_SECONDS

    return interrupt


def assert_nothing_half_written(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert "-partial-" not in path.name, path
        if path.name.startswith("checkpoint-"):
            assert (path / "complete").exists(), path
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def generating(start: Callable[..., Running], model: Path, *options: object) -> Running:
    """A command whose two ranks have begun to answer."""
    arguments = ("--prompt", "Line", "--devices", 2, "--max-new-tokens", LONG)
    running = start("generate", model, *arguments, *options)
    running.wait_for(lambda: len(running.out) > len("Line"))
    assert len(running.workers()) == 2
    return running


def training(start: Callable[..., Running], folder: Path, data: Path) -> Running:
    """A command that is in the middle of training, and saves at every step."""
    recipe = tiny.recipe_text(data, Path("run"), steps=100_000, save_every=1)
    (folder / "recipe.toml").write_text(recipe)
    running = start("train", "recipe.toml")
    running.wait_for(lambda: re.search(r"training kraken .* [1-9]\d*/100000", running.terminal))
    running.wait_for(lambda: list(folder.glob("run/checkpoints/*/complete")))
    return running


def test_ctrl_c_while_the_demo_trains(start, tmp_path, ctrl_c):
    (tmp_path / "text.txt").write_text(tiny.text(8000), encoding="utf-8")
    running = start("demo", "--text", "text.txt", "--out", "demo", "--steps", 100_000)
    running.wait_for(lambda: re.search(r"training standard .* [1-9]\d*/100000", running.terminal))
    ctrl_c(running, "the demo trains")
    assert running.messages[-1] == INTERRUPTED
    assert running.out == ""
    hidden, shown = (running.terminal.rfind(f"\x1b[?25{mode}") for mode in "lh")
    assert 0 <= hidden < shown  # the terminal has its cursor back
    assert_nothing_half_written(tmp_path / "demo")
    assert (tmp_path / "demo" / "data" / "manifest.json").is_file()
    assert not (tmp_path / "demo" / "runs" / "standard" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_while_training_and_saving(start, tmp_path, tiny_data, number, code, figure):
    running = training(start, tmp_path, tiny_data)
    running.send(number)
    assert running.end() == code
    figure(f"{number.name} while a model trains and is saved", f"{running.seconds:.1f} s", "3 s")
    assert running.seconds < CTRL_C_SECONDS
    assert_nothing_half_written(tmp_path / "run")
    checkpoints = list((tmp_path / "run" / "checkpoints").iterdir())
    assert 1 <= len(checkpoints) <= 2
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.013, 0.029, 0.041])
def test_a_kill_at_any_moment_leaves_the_last_good_checkpoint(start, tmp_path, tiny_data, seconds):
    """It saves at every step, so that most moments are in the middle of a save."""
    running = training(start, tmp_path, tiny_data)
    time.sleep(seconds)
    running.stop()
    run = RunFolder(tmp_path / "run")
    last = run.last_checkpoint()
    assert last is not None and not run.is_running
    for path in last.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    begun = int(last.name.partition("-")[2])
    again = start("train", "recipe.toml")
    again.wait_for(lambda: f"going on from {last.name}" in again.terminal)
    again.wait_for(lambda: step_of(run.last_checkpoint() or last) > begun)
    again.send(signal.SIGTERM)
    assert again.end() == 143
    assert_nothing_half_written(tmp_path / "run")
    assert "saved: the same command goes on from there" in again.terminal


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, INTERRUPTED),
        pytest.param(signal.SIGTERM, 143, "", marks=pytest.mark.slow),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_while_two_ranks_generate(start, long_model, number, code, said, figure):
    running = generating(start, long_model)
    running.send(number)
    assert running.end() == code
    figure(f"{number.name} while two ranks generate", f"{running.seconds:.1f} s", "3 s")
    assert running.seconds < CTRL_C_SECONDS
    assert running.messages == [said]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "name"),
    [("rank", "krakenlm rank 1"), ("starter", "the process that starts the ranks")],
)
def test_a_killed_process_ends_the_whole_command(start, long_model, whom, name):
    running = generating(start, long_model)
    _, second = sorted(running.workers(), key=lambda rank: (rank.create_time(), rank.pid))
    begun = time.monotonic()
    running.send(signal.SIGKILL, second if whom == "rank" else second.parent())
    assert running.end() == 1
    assert time.monotonic() - begun < SECONDS_TO_END / 2
    (said,) = running.messages
    assert said.startswith(f"krakenlm: RuntimeError: {name} was killed by signal 9")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0])
def test_ctrl_c_while_the_ranks_start(start, long_model, seconds, ctrl_c):
    """What starts them is busy importing: it ends without a word all the same."""
    arguments = ("--prompt", "Line", "--devices", 2, "--max-new-tokens", LONG)
    running = start("generate", long_model, *arguments)
    running.wait_for(running.workers)
    time.sleep(seconds)
    ctrl_c(running, f"two ranks start, after {seconds} s")
    assert running.messages == [INTERRUPTED]
    assert running.out == ""


def test_ctrl_c_while_text_becomes_tokens(start, tmp_path, ctrl_c):
    (tmp_path / "text.txt").write_text(tiny.text(100_000), encoding="utf-8")
    running = start("prepare", "out", "--text", "text.txt", "--tokenizer", "train:2000")
    running.wait_for(lambda: "learning a tokenizer" in running.terminal)
    assert (tmp_path / "out.unfinished").is_dir()
    time.sleep(0.3)
    ctrl_c(running, "text becomes tokens")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stdout", "text.txt", "tmp"]
    assert running.messages[-1] == INTERRUPTED


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_finished_shards_outlive_the_processes_that_tokenize(start, tmp_path, tiny_model, number):
    (tmp_path / "text.txt").write_text(tiny.text(150_000), encoding="utf-8")
    options = ("--tokenizer", tiny_model, "--workers", 2, "--shard-tokens", 20_000)
    running = start("prepare", "out", "--text", "text.txt", *options)
    left = tmp_path / "out.unfinished"
    running.wait_for((left / "progress.json").is_file)
    assert len(running.workers()) == 2
    running.send(number)
    assert running.end() == (130 if number == signal.SIGINT else -number)
    assert (left / "train-00000.bin").stat().st_size == 40_000
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert running.messages[-1] == INTERRUPTED
        assert "keeps the finished shards" in running.messages[-2]
