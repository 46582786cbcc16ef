"""Two ranks over a real link, as root and as an ordinary user, and nothing left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from krakenlm.ranks import namespaces
from krakenlm.ranks.launch import Rank, launch
from krakenlm.ranks.namespaces import NoNamespacesError, linked_namespaces
from krakenlm.transport.collective import Group
from krakenlm.transport.connect import connect_group

pytestmark = pytest.mark.dist

SCRIPT = Path(__file__).parents[2] / "scripts" / "netns_bench.sh"
# One second at 10 Mbit/s; the burst is let through at once.
ELEMENTS = 312_500 + int(namespaces.BURST.removesuffix("kb")) * 256
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def reason_not_to(prefix: list[str]) -> str:
    """Why the user that a prefix stands for cannot make namespaces; empty where it can."""
    if prefix and (os.geteuid() != 0 or shutil.which("setpriv") is None):
        return "only root can try it as another user, with setpriv"
    # Through a shell: what setpriv itself starts still has root's right to read.
    python = [*prefix, "sh", "-c", 'exec "$0" "$@"', sys.executable]
    command = [*python, "-c", "import test_namespaces; test_namespaces.try_it()"]
    ended = subprocess.run(command, capture_output=True, text=True, env=here())
    if prefix and ended.returncode:
        return "an ordinary user cannot run this Python or read this checkout"
    return ended.stdout.strip()


def here() -> dict[str, str]:
    """An environment in which processes find this module and what it tests."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }


def try_it() -> None:
    try:
        with linked_namespaces("1gbit"):
            pass
    except NoNamespacesError as error:
        print(error)  # noqa: T201  what the test reads


@pytest.fixture(params=[[], AS_NOBODY], ids=["this user", "an ordinary user"])
def prefix(request) -> list[str]:
    if reason := reason_not_to(request.param):
        pytest.skip(f"no network namespaces: {reason}")
    return request.param


def sum_up(rank: Rank) -> None:
    collective = connect_group(Group(rank.index, rank.size), rank.device)
    for elements in (1, ELEMENTS):  # the first is over when both have come
        ours = torch.full((1, 1, 1, elements), rank.index + 1.0)
        start = time.perf_counter()
        total = collective.begin(ours).wait()
        seconds = time.perf_counter() - start
    right = bool((total == 3.0).all())
    rank.emit((collective.name, right, seconds, os.environ["GLOO_SOCKET_IFNAME"]))


def main() -> None:
    """What two ranks saw, as JSON."""
    heard: list[tuple] = []
    with linked_namespaces("10mbit") as places:
        launch(sum_up, [], devices=2, on_message=heard.append, device_type="cpu", places=places)
        found = {"of_user": places[0].of_user, "heard": heard}
        print(json.dumps(found))  # noqa: T201  what the test reads


def said_by(prefix: list[str], function: str) -> str:
    """What a function of this module prints, as the user that a prefix stands for."""
    code = f"import test_namespaces; test_namespaces.{function}()"
    ended = subprocess.run(
        [*prefix, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=here(),
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")  # and no library has anything to say
    return ended.stdout


@pytest.mark.alone
def test_ranks_sum_over_a_link_of_the_given_rate(prefix):
    found = json.loads(said_by(prefix, "main"))
    assert found["of_user"] is bool(prefix or os.geteuid())
    assert sorted(interface for *_, interface in found["heard"]) == ["kr0", "kr1"]
    for transport, right, seconds, _ in found["heard"]:
        assert (transport, right) == ("sockets", True)
        assert 0.8 < seconds < 5  # most of it is a margin for busy machines


def wait_for_the_other(rank: Rank) -> None:
    rank.activity("waiting")
    collective = connect_group(Group(rank.index, rank.size), rank.device)
    collective.begin(torch.ones(1, 1, 1, 4)).wait()
    rank.emit("here")
    if rank.index == 1:
        time.sleep(600)
    collective.begin(torch.ones(1, 1, 1, 4)).wait()


def cut() -> None:
    """Ranks on both ends of a cable that is pulled."""
    with linked_namespaces("1gbit") as places:
        heard: list[str] = []

        def hear(message: str) -> None:
            heard.append(message)
            if len(heard) == 2:
                inside = namespaces._inside(
                    namespaces._tools(), places[1].holder, places[1].of_user
                )
                subprocess.run([*inside, "ip", "link", "set", "kr1", "down"], check=True)

        setting = {"devices": 2, "device_type": "cpu", "places": places, "timeout": 2.0}
        try:
            launch(wait_for_the_other, [], on_message=hear, **setting)  # type: ignore[arg-type]
        except RuntimeError as error:
            print(error)  # noqa: T201  what the test reads


@pytest.mark.alone
def test_a_cable_that_is_pulled_ends_both_ranks(prefix):
    begun = time.monotonic()
    found = said_by(prefix, "cut")
    said = "krakenlm rank [01] has given no sign of life for 2 s while waiting: it was stopped, its"
    assert re.match(said, found)
    assert time.monotonic() - begun < 60


HOLD = """
import sys, time
from krakenlm.ranks.namespaces import linked_namespaces
with linked_namespaces("1gbit") as places:
    print(*(place.holder for place in places), flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_the_namespaces_end_with_whoever_made_them(prefix, number):
    maker = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=here(),
    )
    with maker:
        holders = list(map(int, maker.stdout.readline().split()))
        assert len(holders) == 2 and all(map(alive, holders))
        maker.send_signal(number)
        maker.wait(20)
    end = time.monotonic() + 20
    while any(map(alive, holders)):
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # until process 1 finds the time for it


def fake(folder: Path, **tools: str) -> None:
    for name, body in tools.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)


def test_a_machine_that_forbids_them_is_asked_why(tmp_path, monkeypatch):
    fake(tmp_path, unshare="echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1",
         nsenter="exit 1", ip="exit 1", tc="exit 1")  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        pytest.raises(NoNamespacesError, match=r"^unshare: unshare failed: Operation not permit"),
        linked_namespaces("1gbit"),
    ):
        raise AssertionError


def test_a_kernel_without_a_part_of_it_leaves_nothing(tmp_path, monkeypatch):
    """What stands for unshare does its work, as if in a namespace; ip then has no veth."""
    fake(tmp_path, unshare='for program; do :; done; exec "$program"', nsenter="exit 1",
         ip="exit 1", tc="exit 1")  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    held = []
    really = namespaces._hold
    monkeypatch.setattr(namespaces, "_hold", lambda *a: held.append(really(*a)) or held[-1])
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 0)
    with (
        pytest.raises(NoNamespacesError, match=r"ip link add name kr0 type veth .* failed"),
        linked_namespaces("1gbit"),
    ):
        raise AssertionError
    assert len(held) == 2 and not any(map(alive, held))


def test_a_missing_tool_is_named(monkeypatch):
    really = shutil.which
    monkeypatch.setattr(
        namespaces.shutil, "which", lambda tool, **k: None if tool == "tc" else really("true")
    )
    with pytest.raises(NoNamespacesError, match="there is no tc: install iproute2"):
        linked_namespaces("1gbit").__enter__()


def test_the_script_for_measurements_makes_the_same_link():
    script = SCRIPT.read_text(encoding="utf-8")
    assert re.search(r"BURST=\$\{BURST:-(\w+)\}", script)[1] == namespaces.BURST
    assert re.search(r"tbf rate \"\$RATE\" burst \"\$BURST\" limit (\w+)", script)[1] == (
        namespaces.QUEUE
    )
    assert re.search(r"SUBNET=([\d.]+)", script)[1] == namespaces.SUBNET
