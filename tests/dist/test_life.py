"""Ranks that are stopped or killed are noticed by all others, with what they were doing."""

import os
import signal
import threading
import time

import psutil
import pytest
import torch
from torch import distributed as dist

from krakenlm.ranks.launch import Rank, launch

pytestmark = [pytest.mark.dist, pytest.mark.alone]

TIMEOUT = 2.0


def hit(rank: Rank, number: int) -> None:
    rank.activity("weighing")
    dist.barrier()
    if rank.index == 1:
        os.kill(os.getpid(), number)
    dist.barrier()


def never(rank: Rank) -> None:
    raise AssertionError("nobody comes this far")


def slow(rank: Rank) -> None:
    """One rank computes for twice the limit, in Python and in PyTorch."""
    if rank.index == 1:
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            sum(range(1000))
        x = torch.randn(600, 600)
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            x = (x @ x).clamp(-1, 1)
    dist.barrier()
    rank.emit(rank.index)


def run(worker, *arguments, timeout=TIMEOUT):
    heard = []
    begun = time.monotonic()
    try:
        launch(
            worker, arguments, devices=2, on_message=heard.append, device_type="cpu",
            timeout=timeout,
        )  # fmt: skip
    finally:
        assert time.monotonic() - begun < 60
        left = psutil.Process().children(recursive=True)
        assert [p for p in left if "resource_tracker" not in " ".join(p.cmdline())] == []
    return heard


def test_a_stopped_rank_ends_all_within_the_limit():
    with pytest.raises(RuntimeError, match=r"^krakenlm rank 1 .* for 2 s while weighing: "):
        run(hit, signal.SIGSTOP)


def test_a_killed_rank_is_named_with_what_it_was_doing():
    with pytest.raises(RuntimeError, match=r"^krakenlm rank 1 was killed by signal 9 while weigh"):
        run(hit, signal.SIGKILL)


def test_a_rank_that_computes_for_longer_than_the_limit_is_alive(figure):
    assert sorted(run(slow)) == [0, 1]
    figure("a rank that computes for twice the limit", "is not touched", "is not touched")


def test_a_rank_that_is_stopped_while_it_starts_is_noticed_too():
    """No connection stands yet: who started it looks."""

    def stop_one() -> None:
        me = psutil.Process()
        while not (ranks := [c for c in me.children(recursive=True) if c.parent() != me]):
            time.sleep(0.001)
        ranks[0].suspend()

    thread = threading.Thread(target=stop_one)
    thread.start()
    with pytest.raises(RuntimeError, match=r"^krakenlm rank \d has been stopped by a signal for 2"):
        run(never)
    thread.join()
