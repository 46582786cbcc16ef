"""``scripts/netns_bench.sh``: ranks over a link of a given rate, and nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.reliability

SCRIPT = Path(__file__).parents[2] / "scripts" / "netns_bench.sh"
SECONDS_TO_END = 20  # nearly all of it is a margin for busy machines

if shutil.which("bash") is None:
    pytest.skip("the script needs bash", allow_module_level=True)


def ask_ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Skips where the script cannot make its network."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    for tool in ("ip", "tc", "setsid"):
        if shutil.which(tool) is None:
            pytest.skip(f"the script needs {tool}")
    name = f"kraken-test-{os.getpid()}"
    commands = (
        ("netns", "add", name),
        ("-n", name, "link", "add", "name", "krtest", "type", "veth", "peer", "name", "krpeer"),
    )
    try:
        for command in commands:
            if (said := ask_ip(*command)).returncode:
                pytest.skip(f"this machine does not let us make namespaces: {said.stderr.strip()}")
    finally:
        ask_ip("netns", "delete", name)


needs_namespaces = pytest.mark.usefixtures("namespaces")


def spaces_of(pid: int) -> list[str]:
    return [line for line in ask_ip("netns", "list").stdout.splitlines() if f"-{pid}-" in line]


class Running:
    """The script in a process group of its own, its output in files."""

    def __init__(self, folder: Path, *arguments: object, **environment: object) -> None:
        self._files = [folder / "stdout", folder / "stderr"]
        folder.mkdir(exist_ok=True)
        with self._files[0].open("wb") as stdout, self._files[1].open("wb") as stderr:
            self.process = psutil.Popen(
                [str(SCRIPT), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=folder,
                start_new_session=True,
                env=os.environ | {key: str(value) for key, value in environment.items()},
            )

    @property
    def stdout(self) -> str:
        return self._files[0].read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._files[1].read_text(encoding="utf-8")

    def processes(self, folder: Path, count: int) -> list[psutil.Process]:
        """Those that write their ids into the folder, once all of them have."""
        end = time.monotonic() + SECONDS_TO_END
        while len(paths := list(folder.glob("pid-*"))) < count:
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < end, self.stderr
            time.sleep(0.02)
        return [psutil.Process(int(path.name.removeprefix("pid-"))) for path in paths]

    def end(self) -> int:
        """The exit status; fails where a namespace outlives the script."""
        code = self.process.wait(SECONDS_TO_END)
        assert spaces_of(self.process.pid) == []
        return int(code)

    def stop(self) -> None:
        """Only of use after a failed test: the script knows best how to end itself."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(SECONDS_TO_END)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def run(*arguments: object, **environment: object) -> Running:
        folder = tmp_path / f"run{len(started)}"
        started.append(Running(folder, *arguments, **environment))
        return started[-1]

    yield run
    for each in started:
        each.stop()


def python(folder: Path, program: str) -> tuple[str, str, str]:
    """A COMMAND that runs ``program``; its results belong into ``folder``."""
    path = folder / "program.py"
    path.write_text(program, encoding="utf-8")
    return sys.executable, str(path), str(folder)


def said_by(command: list[str], **environment: str) -> str:
    """The single line with which the script refuses."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, env=os.environ | environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("netns_bench.sh: ")
    return line


@pytest.mark.parametrize("arguments", [[], ["1gbit"]])
def test_missing_arguments(arguments):
    assert "usage: netns_bench.sh RATE COMMAND" in said_by([str(SCRIPT), *arguments])


def test_help():
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: scripts/netns_bench.sh RATE COMMAND")


@pytest.mark.parametrize(
    ("user", "tools", "message"),
    [
        ("1000", ["ip", "tc"], "only root can make network namespaces: run it with sudo -E"),
        ("0", ["tc"], "'ip' is not on PATH: install iproute2"),
        ("0", ["ip"], "'tc' is not on PATH: install iproute2"),
        ("0", ["ip", "tc"], "'setsid' is not on PATH: install util-linux"),
    ],
)
def test_a_machine_that_lacks_something(tmp_path, user, tools, message):
    for name in ("id", *tools):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {user}\n")
        (tmp_path / name).chmod(0o755)
    command = [str(shutil.which("bash")), str(SCRIPT), "1gbit", "id"]
    assert said_by(command, PATH=str(tmp_path)) == f"netns_bench.sh: {message}"


@needs_namespaces
@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["fast", "true"], {}, "RATE 'fast'"),
        (["0", "true"], {}, "RATE '0'"),
        (["1gbit", "true"], {"BURST": "much"}, "BURST 'much'"),
        (["1gbit", "true"], {"DELAY": "late"}, "DELAY 'late'"),
        (["1gbit", "true"], {"RANKS": "two"}, "RANKS has to be a number from 1 to 99, not 'two'"),
        (["1gbit", "true"], {"COMMANDS": "3"}, "COMMANDS has to be a number from 1 to RANKS (2)"),
        (["1gbit", "true"], {"MASTER_PORT": "x"}, "MASTER_PORT has to be a port, not 'x'"),
        (["1gbit", "no-such-command"], {}, "there is no command 'no-such-command'"),
    ],
)
def test_a_bad_request(start, arguments, environment, message):
    running = start(*arguments, **environment)
    assert running.end() == 2
    (line,) = running.stderr.splitlines()
    assert line.startswith("netns_bench.sh: ")
    assert message in line
    assert running.stdout == ""


SEE = """
import json, os, pathlib, socket, sys
rank = os.environ["RANK"]
print("out", rank)
sys.stderr.write(f"err {rank}\\n")  # at once: print would write the end of the line by itself
seen = dict(os.environ, interfaces=[name for _, name in socket.if_nameindex()])
pathlib.Path(sys.argv[1], "seen" + rank).write_text(json.dumps(seen))
"""


@needs_namespaces
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_the_ranks_see(start, tmp_path, ranks):
    running = start("1gbit", *python(tmp_path, SEE), RANKS=ranks)
    assert running.end() == 0
    assert running.stdout == "out 0\n"
    assert sorted(running.stderr.splitlines()) == [f"err {rank}" for rank in range(ranks)]
    for rank in range(ranks):
        seen = json.loads((tmp_path / f"seen{rank}").read_text())
        link = f"kr{running.process.pid}v{rank}"
        expected = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "10.213.0.1",
            "MASTER_PORT": "29500",
            "GLOO_SOCKET_IFNAME": link,
        }
        assert {key: seen[key] for key in expected} == expected
        # The kernel may add tunnels of its own (sit0, tunl0) to each namespace.
        assert {"lo", link} <= set(seen["interfaces"])
        assert not [name for name in seen["interfaces"] if name.startswith(("eth", "en"))]


ENTER = """
import os, subprocess
first, second = os.environ["NETNS_SPACES"].split()
shown = subprocess.check_output(f"ip netns exec {second} ip -4 -o addr", shell=True, text=True)
print(os.environ["RANK"], "10.213.0.2/24" in shown, first != second)
"""


@needs_namespaces
def test_one_command_reaches_the_other_namespaces(start, tmp_path):
    running = start("1gbit", *python(tmp_path, ENTER), COMMANDS=1)
    assert (running.end(), running.stdout) == (0, "0 True True\n")


# Every other rank and rank 0 send each other as many bytes as the argument says, at the same time.
TALK = """
import json, os, pathlib, socket, sys, threading, time
folder, size = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

def connect():
    while True:
        try:
            return socket.create_connection(address, timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.01)

def receive(peer, left):
    while left:
        data = peer.recv(min(left, 1 << 16))
        assert data
        left -= len(data)

def exchange(peer):
    sender = threading.Thread(target=peer.sendall, args=(bytes(size),))
    sender.start()
    receive(peer, size)
    sender.join()

if rank == 0:
    server = socket.create_server(address)
    server.settimeout(10)
    peers = [server.accept()[0] for _ in range(ranks - 1)]
    for peer in peers:
        peer.sendall(b"!")
else:
    peers = [connect()]
    receive(peers[0], 1)
begun = time.perf_counter()
threads = [threading.Thread(target=exchange, args=(peer,)) for peer in peers]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(time.perf_counter() - begun))
"""


def seconds_to_talk(start, folder: Path, rate: str, size: int, **environment: object) -> float:
    running = start(rate, *python(folder, TALK), size, **environment)
    assert running.end() == 0, running.stderr
    return float(running.stdout)


@needs_namespaces
@pytest.mark.parametrize(("ranks", "size"), [(2, 1_250_000), (3, 625_000)])
def test_the_rate_holds_in_both_directions(start, tmp_path, ranks, size):
    """Rank 0 sends and receives 1.25 MB at 10 Mbit/s: together one second, one after the other two.

    With three ranks it is the bridge's end of rank 0's link that holds what rank 0 receives.
    """
    seconds = seconds_to_talk(start, tmp_path, "10mbit", size, RANKS=ranks, BURST="32kb")
    assert 0.8 < seconds < 2


@needs_namespaces
def test_no_rate(start, tmp_path):
    """At 100 Mbit/s these bytes would take two seconds."""
    assert seconds_to_talk(start, tmp_path, "none", 25_000_000) < 1.5


@needs_namespaces
def test_a_delay(start, tmp_path):
    """Both ways together take two tenths of a second, and the rate still holds."""
    probe = start("none", "true", DELAY="100ms")
    if probe.end():
        pytest.skip(f"this kernel has no netem: {probe.stderr.strip()}")
    seconds = seconds_to_talk(start, tmp_path, "10mbit", 625_000, DELAY="100ms", BURST="32kb")
    assert 0.6 < seconds < 2


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Orphans that have ended stay zombies until process 1 finds the time for them."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# Ranks that last until they are told to go on, each with a process that has left its group.
LAST = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "100"], start_new_session=True)
for pid in (os.getpid(), child.pid):
    pathlib.Path(sys.argv[1], f"pid-{pid}").touch()
while not pathlib.Path(sys.argv[1], "go").exists():
    time.sleep(0.02)
"""


@needs_namespaces
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_while_the_ranks_run(start, tmp_path, number, code):
    running = start("1gbit", *python(tmp_path, LAST))
    processes = running.processes(tmp_path, 4)
    assert len(spaces_of(running.process.pid)) == 2
    if number == signal.SIGTERM:
        running.process.send_signal(number)
    else:  # a terminal sends these to the whole group
        os.killpg(running.process.pid, number)
    assert running.end() == code
    assert alive(processes) == []
    assert running.stdout == ""
    assert running.stderr == ""


@needs_namespaces
@pytest.mark.parametrize("seconds", [0.02, 0.04, 0.06, 0.1])
def test_a_signal_while_the_network_is_made(start, seconds):
    running = start("1gbit", "sleep", 100, RANKS=3)
    time.sleep(seconds)
    os.killpg(running.process.pid, signal.SIGINT)
    # Before it has said otherwise bash dies of the signal; ip may fail of it before bash looks.
    assert running.end() in (-signal.SIGINT, 130, 2)


@needs_namespaces
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_rank_ends_the_others(start, tmp_path, failing):
    program = LAST + (f"if os.environ['RANK'] == '{failing}': sys.exit(7)\ntime.sleep(100)\n")
    running = start("1gbit", *python(tmp_path, program), RANKS=3)
    processes = running.processes(tmp_path, 6)
    (tmp_path / "go").touch()
    assert running.end() == 7
    assert alive(processes) == []
    assert running.stderr == f"netns_bench.sh: rank {failing} ended with status 7\n"


@needs_namespaces
@pytest.mark.slow
def test_a_rank_that_does_not_want_to_end(start, tmp_path):
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LAST
    running = start("1gbit", *python(tmp_path, stubborn))
    processes = running.processes(tmp_path, 4)
    begun = time.monotonic()
    running.process.terminate()
    assert running.end() == 143
    assert 4 < time.monotonic() - begun < SECONDS_TO_END
    assert alive(processes) == []


@needs_namespaces
def test_two_runs_at_once(start, tmp_path):
    first = start("1gbit", *python(tmp_path, LAST))
    first.processes(tmp_path, 4)
    second = start("1gbit", "true")
    assert second.end() == 0
    assert len(spaces_of(first.process.pid)) == 2
    first.process.terminate()
    assert first.end() == 143
