"""Commands where /dev/shm is small, read-only or missing, and where no network interface is up.

Each runs in namespaces of its own; where the system does not let us make them, tests are skipped.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import tiny

pytestmark = pytest.mark.reliability

SMALL = "mount -t tmpfs -o size=16k small /dev/shm"
READ_ONLY = f"{SMALL} && mount -o remount,ro /dev/shm"
# A mebibyte and a half: enough to begin with, and not for larger messages.
GROWS_NO_MORE = "mount -t tmpfs -o size=1536k small /dev/shm"
NO_ROOM, NOT_WRITABLE = "No space left on device", "Read-only file system"


def within(flags: str, prepare: str, folder: Path, *arguments: object) -> tiny.Outcome:
    """Run krakenlm in new namespaces, behind what prepares them; skips where that is refused."""
    return program_within(flags, prepare, folder, "-m", "krakenlm", *arguments)


def program_within(flags: str, prepare: str, folder: Path, *arguments: object) -> tiny.Outcome:
    """The same for any program of Python's."""
    marker = "namespaces are ready"
    script = f'{prepare} && echo "{marker}" >&2 && "$@"; code=$?; ls -A /dev/shm >&2; exit $code'
    command = ["unshare", flags, "sh", "-c", script, "sh"]
    program = [sys.executable, *map(str, arguments)]
    try:
        done = subprocess.run(
            command + program, capture_output=True, text=True, cwd=folder, timeout=120
        )
    except FileNotFoundError:
        pytest.skip("this machine has no unshare")
    if marker not in done.stderr:
        pytest.skip(f"this machine does not let us make namespaces: {done.stderr.strip()}")
    return tiny.Outcome(done.returncode, done.stdout, done.stderr.partition(f"{marker}\n")[2])


def generated(prepare: str, model: Path, folder: Path, *options: object) -> tiny.Outcome:
    arguments = ("generate", model, "--prompt", "Line", "--devices", 2, "--max-new-tokens", 4)
    return within("-rm", prepare, folder, *arguments, *options)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (SMALL, NO_ROOM),
        pytest.param(READ_ONLY, NOT_WRITABLE, marks=pytest.mark.slow),
    ],
)
def test_ranks_without_shared_memory_go_over_to_sockets_and_say_so(
    tiny_model, tmp_path, prepare, reason
):
    outcome = generated(prepare, tiny_model, tmp_path)
    assert outcome.code == 0, outcome.err
    (said,) = outcome.err.splitlines()  # the one line, and nothing left behind in /dev/shm
    assert reason in said and "go through sockets" in said
    assert outcome.out.startswith("Line") and len(outcome.out) > len("Line\n")


@pytest.mark.slow
def test_shared_memory_that_was_asked_for_and_is_not_there_is_an_error(tiny_model, tmp_path):
    outcome = generated(READ_ONLY, tiny_model, tmp_path, "--transport", "shared-memory")
    assert (outcome.code, outcome.out) == (2, "")
    (said,) = outcome.err.splitlines()
    assert said.startswith("krakenlm: --transport shared-memory: /dev/shm cannot hold")
    assert NOT_WRITABLE in said and said.endswith("or use --transport sockets")


@pytest.mark.slow
def test_latency_says_what_carried_the_messages_in_the_end(tmp_path):
    arguments = ("--size", "124M", "--input-len", 128, "--output-len", 2, "--num-iters", 2)
    outcome = within(
        *("-rm", GROWS_NO_MORE, tmp_path, "bench", "latency", *arguments),
        *("--num-iters-warmup", 0, "--wirings", "standard,kraken"),
    )
    assert outcome.code == 0, outcome.err
    notes = [line for line in outcome.err.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and NO_ROOM in notes[0]
    assert "; sockets; " in outcome.out and "shared-memory" not in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize("transports", ["all", "shared-memory"])
def test_sums_are_timed_as_far_as_shared_memory_goes(tmp_path, transports):
    arguments = ("bench", "allreduce", "--max-bytes", "256K", "--num-iters", 2)
    outcome = within("-rm", GROWS_NO_MORE, tmp_path, *arguments, "--transports", transports)
    said = [line for line in outcome.err.splitlines() if NO_ROOM in line]
    assert len(said) == 1, outcome.err
    if transports == "shared-memory":
        assert (outcome.code, outcome.out) == (2, "")
        return
    assert outcome.code == 0, outcome.err
    assert said[0].startswith("left out from 131072 bytes on: --transport shared-memory")
    blocks = outcome.out.split("# AllReduce over ")[1:]
    rows = {block.split(",")[0]: block.count(" sum ") for block in reversed(blocks)}
    assert rows == {"shared-memory": 7, "sockets": 9, "process-group": 9}


def test_an_interface_that_is_down_is_found(tmp_path):
    ask = "from krakenlm.ranks.network import check_interface; check_interface('lo')"
    outcome = program_within("-rn", "true", tmp_path, "-c", ask)
    assert outcome.code == 1
    assert "KrakenError: no network interface is up" in outcome.err
    assert program_within("-rn", "ip link set lo up", tmp_path, "-c", ask).code == 0


@pytest.mark.slow
def test_without_a_network_interface_ranks_are_not_started(tiny_model, tmp_path):
    arguments = ("generate", tiny_model, "--prompt", "Line", "--devices", 2)
    outcome = within("-rn", "true", tmp_path, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    shown = [line for line in outcome.err.splitlines() if "krakenlm" in line]
    assert shown == [
        "krakenlm: no network interface is up, and the ranks meet on lo: run `ip link set lo up` "
        "as root, or use --devices 1"
    ]
    assert "Traceback" not in outcome.err


@pytest.mark.slow
def test_what_it_says_brings_the_interface_up(tiny_model, tmp_path):
    arguments = ("generate", tiny_model, "--prompt", "Line", "--devices", 2)
    outcome = within("-rn", "ip link set lo up", tmp_path, *arguments)
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_one_device_needs_neither(tiny_model, tmp_path):
    arguments = ("generate", tiny_model, "--prompt", "Line")
    outcome = within("-rmn", READ_ONLY, tmp_path, *arguments)
    assert (outcome.code, outcome.err) == (0, "")
