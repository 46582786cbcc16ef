"""Where processes of torchrun meet, and that they end with it."""

import signal
import socket
import subprocess
import sys

import psutil
import pytest
from torch.distributed import HashStore

from krakenlm.errors import KrakenError
from krakenlm.ranks import torchrun


@pytest.fixture
def under_torchrun(monkeypatch):
    """An environment as torchrun's, whose store answers."""
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))

    def set_up(number=0, most=3, *, machines=1, shared="True"):
        values = {
            "TORCHELASTIC_RESTART_COUNT": number,
            "TORCHELASTIC_MAX_RESTARTS": most,
            "TORCHELASTIC_USE_AGENT_STORE": shared,
            "GROUP_WORLD_SIZE": machines,
        }
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        return server

    yield set_up
    server.close()


def test_a_further_attempt_does_not_see_what_the_first_one_left(under_torchrun, monkeypatch):
    all_of_it = HashStore()
    all_of_it.set("address", "of the first")
    monkeypatch.setattr(torchrun, "rendezvous", lambda url: iter([(all_of_it, 0, 2)]))
    under_torchrun(number=1)
    mine = torchrun.store_of_this_attempt()
    assert not mine.check(["address"])
    mine.set("address", "of the second")
    under_torchrun(number=2)
    assert not torchrun.store_of_this_attempt().check(["address"])
    assert all_of_it.get("address") == b"of the first"


def test_others_meet_as_torchrun_has_them(under_torchrun, monkeypatch):
    assert torchrun.store_of_this_attempt() is None
    for settings in ({}, {"most": 0}, {"number": 1, "shared": "False"}):
        under_torchrun(**settings)
        assert torchrun.store_of_this_attempt() is None


def test_several_machines_that_share_a_store_are_told_what_to_set(under_torchrun):
    under_torchrun(machines=2)
    with pytest.raises(KrakenError, match="start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        torchrun.store_of_this_attempt()
    under_torchrun(machines=2, shared="False")
    assert torchrun.store_of_this_attempt() is None


def test_a_store_that_does_not_answer_is_torchrun_that_is_gone(under_torchrun):
    under_torchrun().close()
    with pytest.raises(
        KrakenError, match=r"^127\.0\.0\.1:\d+, where .* refused\): torchrun is gone"
    ):
        torchrun.store_of_this_attempt()


WAITING = """
import os, sys, signal
from datetime import timedelta
from torch.distributed import TCPStore
from krakenlm.ranks.torchrun import ended_by_sigterm
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
store = TCPStore("127.0.0.1", 0, is_master=True)
with ended_by_sigterm():
    print("waiting", flush=True)
    store.wait(["nobody"], timedelta(seconds=60))
"""


def test_a_process_that_waits_for_others_ends_at_once_when_it_is_asked_to():
    process = psutil.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"waiting\n"
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM


def test_after_that_a_handler_is_what_it_was(own_signals):
    signal.signal(signal.SIGTERM, print)
    with torchrun.ended_by_sigterm():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is print


MIDDLE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
WATCHED = """
import time
from krakenlm.ranks.torchrun import ending_with_parent
with ending_with_parent():
    print("watching", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_ends_when_its_starter_does(number):
    middle = psutil.Popen(
        [sys.executable, "-c", MIDDLE, WATCHED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert middle.stdout.readline() == b"watching\n"
    (watched,) = middle.children()
    middle.send_signal(number)
    middle.wait()
    _, alive = psutil.wait_procs([watched], timeout=20)
    assert alive == []
    assert b"who started this process is gone, so it ends as well" in middle.stderr.read()
