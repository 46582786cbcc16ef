"""A rank that is killed, stopped or cut off, whatever it was doing: all others end and name it."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import distributed as dist

import tiny
from krakenlm.ranks.launch import Rank, launch
from krakenlm.ranks.namespaces import NoNamespacesError, linked_namespaces
from running import LONG, TORCHRUN, Running

pytestmark = [pytest.mark.reliability, pytest.mark.dist, pytest.mark.slow]

KILLED_SECONDS, STALLED_SECONDS = 5.0, 20.0
STALL = "has (given no sign of life|been stopped by a signal) for 15 s"
# A sum that takes seconds holds every rank up in the middle of the prompt.
SLOW_LINK = "gbps=1,latency_us=4000000"

Start = Callable[..., Running]


def generating(start: Start, folder: Path, model: Path, data: Path) -> list[psutil.Process]:
    running = start("generate", model, "--prompt", "Line", "--devices", 2, "--max-new-tokens", LONG)
    running.wait_for(lambda: len(running.out) > len("Line"))
    return running.workers()


def running_a_prompt(start: Start, folder: Path, model: Path, data: Path) -> list[psutil.Process]:
    running = start("generate", model, "--prompt", "Line", "--devices", 2, "--link", SLOW_LINK)
    running.wait_for(lambda: len(running.workers()) == 2)
    time.sleep(8)  # imports, weights; the first sums take longer than that
    return running.workers()


def training(start: Start, folder: Path, data: Path, **settings: int) -> Running:
    recipe = tiny.recipe_text(data, Path("run"), steps=100_000, eval_every=0, **settings)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return start("-m", "krakenlm", "train", "recipe.toml", program=TORCHRUN)


def ranks_of_torchrun(running: Running) -> list[psutil.Process]:
    found = [each for each in running.process.children() if "train" in each.cmdline()]
    return sorted(found, key=lambda each: int(each.environ()["RANK"]))


def learning(start: Start, folder: Path, model: Path, data: Path) -> list[psutil.Process]:
    running = training(start, folder, data, save_every=0)
    running.wait_for(lambda: re.search(r"training kraken .* [1-9]\d*/100000", running.terminal))
    return ranks_of_torchrun(running)


def saving(start: Start, folder: Path, model: Path, data: Path) -> list[psutil.Process]:
    running = training(start, folder, data, save_every=1)
    checkpoints = folder / "run" / "checkpoints"
    running.wait_for(lambda: list(checkpoints.glob("*/complete")))
    ranks = ranks_of_torchrun(running)
    while all((each / "complete").exists() for each in checkpoints.glob("*-*")):
        pass
    return ranks


MOMENTS: dict[str, tuple[Callable[..., list[psutil.Process]], str]] = {
    "a prompt": (running_a_prompt, r"prefilling 1 x \d tokens"),
    "decoding": (generating, "decoding"),
    "a training step": (learning, r"training, in step \d+"),
    "a save": (saving, "saving a checkpoint"),
}
"""How to come to a moment, and what the message says of it."""
OF_TORCHRUN = ("a training step", "a save")


@pytest.fixture
def at(start, tmp_path, long_model, tiny_data) -> Callable[[str], tuple[Running, list[Any]]]:
    """A command in the middle of something, and its ranks."""

    def come_to(moment: str) -> tuple[Running, list[psutil.Process]]:
        started: list[Running] = []

        def noted(*arguments: object, **options: Any) -> Running:
            started.append(start(*arguments, **options))
            return started[0]

        ranks = MOMENTS[moment][0](noted, tmp_path, long_model, tiny_data)
        assert len(ranks) == 2
        return started[0], ranks

    return come_to


def said_by(running: Running) -> str:
    (said,) = re.findall(r"krakenlm: .*", running.terminal)
    return said


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_rank(at, figure, moment, rank):
    running, ranks = at(moment)
    running.send(signal.SIGKILL, ranks[rank])
    assert running.end() != 0
    figure(f"kill -9 of rank {rank} in {moment}", f"{running.seconds:.1f} s", "5 s")
    assert running.seconds < KILLED_SECONDS
    doing = MOMENTS[moment][1]
    assert re.search(
        rf"rank {rank} (was killed by signal 9|is gone) while {doing}", said_by(running)
    )
    if moment in OF_TORCHRUN:
        assert "Signal 9 (SIGKILL)" in running.terminal  # torchrun, who knows


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_rank(at, figure, moment):
    running, ranks = at(moment)
    running.send(signal.SIGSTOP, ranks[1])
    assert running.end() != 0
    figure(f"SIGSTOP of a rank in {moment}", f"{running.seconds:.1f} s", "20 s")
    assert running.seconds < STALLED_SECONDS
    assert re.search(rf"rank 1 {STALL} while {MOMENTS[moment][1]}", said_by(running))


def summing(rank: Rank) -> None:
    rank.activity("summing")
    rank.emit("ready")
    while True:
        dist.barrier()


def test_a_pulled_cable(figure):
    ip = shutil.which("ip", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    pulled: list[float] = []

    def pull(namespace) -> None:
        enter = ["nsenter", f"--net=/proc/{namespace.holder}/ns/net"]
        enter += [f"--user=/proc/{namespace.holder}/ns/user"] if namespace.of_user else []
        time.sleep(1)
        subprocess.run([*enter, ip, "link", "set", namespace.interface, "down"], check=True)
        pulled.append(time.monotonic())

    try:
        with linked_namespaces("1gbit") as places:
            thread = threading.Timer(0, pull, [places[1]])
            with pytest.raises(RuntimeError, match=rf"rank [01] {STALL} while summing"):
                launch(
                    summing, [], devices=2, device_type="cpu", places=places,
                    on_message=lambda _: pulled or thread.is_alive() or thread.start(),
                )  # fmt: skip
            seconds = time.monotonic() - pulled[0]
    except NoNamespacesError as error:
        pytest.skip(str(error))
    thread.join()
    figure("the link between two ranks set down", f"{seconds:.1f} s", "20 s")
    assert seconds < STALLED_SECONDS
