"""Starting ranks, hearing from them, and ending them all."""

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest
import torch
from torch import distributed as dist

from krakenlm.errors import KrakenError, RankFailedError, trying
from krakenlm.ranks.cores import threads_per_rank
from krakenlm.ranks.launch import Rank, launch

pytestmark = pytest.mark.dist


def say_hello(rank: Rank, word: str) -> None:
    total = torch.tensor([rank.index + 1.0])
    dist.all_reduce(total)
    rank.emit((rank.index, rank.size, word, total.item(), torch.get_num_threads()))


def complain(rank: Rank) -> None:
    if rank.index == 1:
        raise KrakenError("rank 1 has no such file")
    dist.barrier()


def fail(rank: Rank) -> None:
    rank.note("about to fail")
    if rank.index == 0:
        with trying("weighing", "weigh less"):
            raise ZeroDivisionError("of all things")
    dist.barrier()


def vanish(rank: Rank) -> None:
    if rank.index == 1:
        os._exit(3)
    dist.barrier()


def hang(rank: Rank) -> None:
    rank.emit("here")
    time.sleep(600)


def ranks_left() -> list[psutil.Process]:
    """Children that compute; multiprocessing keeps a tracker of its own as long as we live."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def run(worker, *arguments, devices=2):
    heard = []
    launch(worker, arguments, devices=devices, on_message=heard.append, device_type="cpu")
    return heard


def test_every_rank_is_heard_and_they_share_the_cores():
    heard = sorted(run(say_hello, "hello", devices=3))
    threads = threads_per_rank(3)
    assert heard == [(rank, 3, "hello", 6.0, threads) for rank in range(3)]


def test_one_device_needs_no_process():
    heard = []

    def worker(rank: Rank) -> None:
        heard.append((rank.index, rank.size, os.getpid()))

    launch(worker, [], devices=1, on_message=heard.append, device_type="cpu")
    assert heard == [(0, 1, os.getpid())]
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("worker", "error", "message"),
    [
        (complain, KrakenError, "rank 1 has no such file"),
        (
            fail,
            RankFailedError,
            "^rank 0 failed while weighing: ZeroDivisionError: of all things: weigh less$",
        ),
        (vanish, RuntimeError, "rank 1 ended with exit code 3"),
    ],
)
def test_a_rank_that_fails_ends_all_and_says_why(worker, error, message, capfd):
    start = time.monotonic()
    with pytest.raises(error, match=message) as raised:
        run(worker)
    assert time.monotonic() - start < 60
    assert not ranks_left()
    if worker is fail:  # its traceback is there for whoever wants it, and nobody has shown it
        assert "in fail" in "".join(traceback.format_exception(raised.value))
        assert capfd.readouterr().err == "about to fail\n"


def test_an_exception_while_listening_ends_all():
    def interrupt(message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(hang, [], devices=2, on_message=interrupt, device_type="cpu")
    assert not ranks_left()


def test_ranks_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_launch import hang\n"
        "from krakenlm.ranks.launch import launch\n"
        "if __name__ == '__main__':\n"
        "    launch(hang, [], devices=2, on_message=lambda m: print(m, flush=True),\n"
        "           device_type='cpu')\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "here\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_more_gpus_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KrakenError, match="2 ranks need 2 GPUs and this machine has 1"):
        launch(hang, [], devices=2, on_message=print, device_type="cuda")


def test_torchrun_with_another_number_of_devices_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(KrakenError, match="--devices 2 under torchrun with 3 processes"):
        launch(hang, [], devices=2, on_message=print, device_type="cpu")
