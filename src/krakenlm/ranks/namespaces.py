"""Two ranks of one machine over a real link: a network namespace each, joined by a veth pair.

An idle process holds each namespace. It ends when this process does, however that comes about, and
the kernel then takes namespaces and link away; nothing has a name that could be left behind. Root
makes them as it is, other users inside a user namespace of their own (``unshare -rn``).
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from krakenlm.errors import KrakenError

# A burst below 64 KB, the largest packet that TCP hands down, makes tbf cut packets up within the
# sender's own system call. The queue holds more than the windows of a few sockets: like a machine's
# own it makes the sender wait and drops nothing. The same in scripts/netns_bench.sh.
BURST = "80kb"
QUEUE = "16mb"
# The namespaces see nothing but each other, so this cannot collide with the machine's networks.
SUBNET = "10.213.0"

_TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "tc": "iproute2"}


class NoNamespacesError(KrakenError):
    """This machine does not let this user make them; the message is the reason alone."""


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """Where one rank lives; other processes of this machine may enter it.

    Attributes:
        holder: id of the process that holds it.
        interface: the rank's end of the link.
        of_user: whether it lies in a user namespace, which has to be entered first.
    """

    holder: int
    interface: str
    of_user: bool

    def enter_user(self) -> None:
        """Take this process, of one thread, to where it may enter the network namespace."""
        if self.of_user:
            _enter(self.holder, "user")

    def enter(self) -> None:
        """Take this thread, and all that it starts, into the network namespace."""
        _enter(self.holder, "net")


@contextmanager
def linked_namespaces(rate: str) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces, and a link between them that carries ``rate`` in each direction.

    Args:
        rate: what tc takes: ``1gbit``, ``100mbit`` (``gbps`` are gigabytes).

    Raises:
        NoNamespacesError: a tool is missing, or the kernel forbids it.
    """
    tools = _tools()
    of_user = os.geteuid() != 0
    with ExitStack() as stack:
        new = [tools["unshare"], *(["--user", "--map-root-user"] if of_user else [])]
        first = _hold(stack, [*new, "--net"])
        inside_first = _inside(tools, first, of_user)
        beside = [*_inside(tools, first, of_user, net=False), tools["unshare"], "--net"]
        second = _hold(stack, beside if of_user else [*new, "--net"])
        ends = [(inside_first, "kr0"), (_inside(tools, second, of_user), "kr1")]
        # Both ends are born inside the namespaces: the machine's own is never touched.
        pair = ["type", "veth", "peer", "name", "kr1", "netns", str(second)]
        _run([*inside_first, tools["ip"], "link", "add", "name", "kr0", *pair])
        for number, (inside, interface) in enumerate(ends, start=1):
            _set_up([*inside, tools["ip"]], interface, f"{SUBNET}.{number}/24")
            # A queue shapes what leaves: one at each end limits both directions.
            shape = ["root", "tbf", "rate", rate, "burst", BURST, "limit", QUEUE]
            _run([*inside, tools["tc"], "qdisc", "add", "dev", interface, *shape])
        yield (
            Namespace(holder=first, interface="kr0", of_user=of_user),
            Namespace(holder=second, interface="kr1", of_user=of_user),
        )


def _tools() -> dict[str, str]:
    """Where the tools are; an ordinary user's PATH may lack the folders of the system's."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = {}
    for tool, package in _TOOLS.items():
        where = shutil.which(tool, path=path)
        if where is None:
            raise NoNamespacesError(f"there is no {tool}: install {package}")
        found[tool] = where
    return found


def _hold(stack: ExitStack, command: Sequence[str]) -> int:
    """Start a process that holds a new namespace until its input ends; return its id.

    What it is sent comes back from the program that unshare becomes, so it is in by then.
    """
    # In a session of its own it does not hear Ctrl-C. Unbuffered, its input can be closed when it
    # is gone.
    holder = subprocess.Popen(
        [*command, "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )
    stack.enter_context(holder)
    assert holder.stdin and holder.stdout and holder.stderr
    try:
        holder.stdin.write(b"\n")
        inside = holder.stdout.readline() == b"\n"
    except BrokenPipeError:
        inside = False
    if not inside:
        raise _refused(command, holder.stderr.read())
    return int(holder.pid)


def _inside(tools: dict[str, str], holder: int, of_user: bool, *, net: bool = True) -> list[str]:
    """What a command in a holder's namespaces begins with."""
    namespaces = ["--user", "--preserve-credentials"] if of_user else []
    return [tools["nsenter"], "--target", str(holder), *namespaces, *(["--net"] if net else [])]


def _set_up(ip: Sequence[str], interface: str, address: str) -> None:
    _run([*ip, "link", "set", "lo", "up"])
    _run([*ip, "address", "add", address, "dev", interface])
    # Without IPv6 addresses there is only one that gloo can pick.
    _run([*ip, "link", "set", interface, "addrgenmode", "none", "up"])


def _run(command: Sequence[str]) -> None:
    ended = subprocess.run(command, capture_output=True, check=False)
    if ended.returncode:
        raise _refused(command, ended.stderr)


def _refused(command: Sequence[str], said: bytes) -> NoNamespacesError:
    first = said.decode(errors="replace").strip().partition("\n")[0]
    return NoNamespacesError(first or f"{' '.join(command)} failed")


def _enter(process: int, kind: str) -> None:
    """``os.setns`` of Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = f"/proc/{process}/ns/{kind}"
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(descriptor, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(descriptor)
