"""Starting ranks, hearing from them, and ending them all."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import distributed as dist

from krakenlm.environment import cores_here
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


def threads_here() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


class ThreadsOfTheStarter:
    """An argument that becomes, where ranks are about to be forked, the number of threads there.

    Forking, OpenBLAS ends its own, so that a rank would find too few.
    """

    def __reduce__(self):
        return threads_here, ()


def where(rank: Rank, threads: int) -> None:
    rank.emit((os.getppid(), threads, sorted(os.sched_getaffinity(0))))


def killed(rank: Rank, whom: str) -> None:
    dist.barrier()
    if rank.index == 1:
        os.kill(os.getpid() if whom == "rank" else os.getppid(), signal.SIGKILL)
    time.sleep(600)


class Unreadable:
    """An argument that only the processes cannot have."""

    def __reduce__(self):
        return int, ("no number",)


def hang(rank: Rank) -> None:
    rank.emit("here")
    time.sleep(600)


def others() -> list[psutil.Process]:
    """Our descendants, dead ones too; multiprocessing keeps a tracker as long as we live."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            zombie = child.status() == psutil.STATUS_ZOMBIE
            if zombie or "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    before = others()
    yield
    assert [process for process in others() if process not in before] == []


def run(worker, *arguments, devices=2):
    heard = []
    launch(worker, arguments, devices=devices, on_message=heard.append, device_type="cpu")
    return heard


def test_every_rank_is_heard_and_they_share_the_cores():
    heard = sorted(run(say_hello, "hello", devices=3))
    threads = threads_per_rank(3)
    assert heard == [(rank, 3, "hello", 6.0, threads) for rank in range(3)]


def test_ranks_come_from_one_process_without_threads_and_keep_to_their_cores():
    """A process with threads, such as OpenBLAS starts for NumPy, must not fork."""
    heard = run(where, ThreadsOfTheStarter())
    (starter,) = {parent for parent, _, _ in heard}
    assert starter != os.getpid()
    assert [threads for _, threads, _ in heard] == [1, 1]
    cores = cores_here()
    each = max(1, len(cores) // 2)
    expected = [cores[:each], cores[each : 2 * each]] if len(cores) > 1 else [cores, cores]
    assert sorted(own for _, _, own in heard) == expected
    assert "OPENBLAS_NUM_THREADS" not in os.environ


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
    if worker is fail:  # its traceback is there for whoever wants it, and nobody has shown it
        assert "in fail" in "".join(traceback.format_exception(raised.value))
        assert capfd.readouterr().err == "about to fail\n"


@pytest.mark.parametrize(
    ("whom", "name", "doing"),
    [
        ("rank", "krakenlm rank 1", " while doing its part"),
        ("starter", "the process that starts the ranks", ""),
    ],
)
def test_what_was_killed_is_named(whom, name, doing):
    start = time.monotonic()
    said = f"^{name} was killed by signal 9{doing}: the machine may be"
    with pytest.raises(RuntimeError, match=said):
        run(killed, whom)
    assert time.monotonic() - start < 60


def test_what_the_ranks_cannot_have_is_said_in_one_line(capfd):
    with pytest.raises(RankFailedError, match=r"^failed while starting the ranks: ValueError: inv"):
        run(hang, Unreadable())
    assert capfd.readouterr().err == ""


def test_an_exception_while_listening_ends_all():
    def interrupt(message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(hang, [], devices=2, on_message=interrupt, device_type="cpu")


@pytest.mark.parametrize(
    ("whom", "moment"),
    [(0, "at work"), (1, "at work"), (2, "at work"), (0, "importing"), (1, "importing")],
    ids=lambda value: value if isinstance(value, str) else ("launcher", "starter", "rank")[value],
)
def test_none_outlives_another_that_is_killed(tmp_path, whom, moment):
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
    command = [sys.executable, script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as parent:  # type: ignore[call-overload]
        launcher = psutil.Process(parent.pid)
        while not (starters := [child for child in launcher.children() if _is_ours(child)]):
            assert parent.poll() is None
            time.sleep(0.01)
        if moment == "at work":
            assert [parent.stdout.readline() for _ in range(2)] == ["here\n"] * 2
        family = [launcher, *starters, *starters[0].children()]
        assert len(family) == (4 if moment == "at work" else 2)
        tracker = [child for child in launcher.children() if child not in family]
        family[whom].kill()
        _, alive = psutil.wait_procs([*family, *tracker], timeout=30)
        assert not alive


def _is_ours(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "spawn_main" in " ".join(process.cmdline())
    return False


def test_more_gpus_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KrakenError, match="2 ranks need 2 GPUs and this machine has 1"):
        launch(hang, [], devices=2, on_message=print, device_type="cuda")


def test_torchrun_with_another_number_of_devices_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(KrakenError, match="--devices 2 under torchrun with 3 processes"):
        launch(hang, [], devices=2, on_message=print, device_type="cpu")
