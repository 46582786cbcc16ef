"""Which network interface the ranks meet on, and whether it is up."""

import fcntl
import os
import socket
import struct
import sys

from krakenlm.errors import KrakenError

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_IFF_UP = 1


def own_address() -> str:
    """The IPv4 address under which the other ranks reach this one: that of gloo's interface.

    Raises:
        OSError: the interface is not there, or has no such address.
    """
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
    if interfaces:
        return address_of(interfaces)
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # sends nothing: asks which interface leads there
        return str(probe.getsockname()[0])


def address_of(interfaces: str) -> str:
    """The IPv4 address of an interface; of the first, where several have commas between.

    Raises:
        OSError: it is not there, or has no such address.
    """
    reply = _ask(_SIOCGIFADDR, interfaces.partition(",")[0])
    return socket.inet_ntoa(reply[20:24])


def check_interface(interfaces: str) -> None:
    """Refuse to start ranks on an interface that is not up. Only Linux is asked.

    Args:
        interfaces: one name, or several with commas between, as in ``GLOO_SOCKET_IFNAME``.

    Raises:
        KrakenError: it is down, or there is none of this name.
    """
    if sys.platform != "linux":
        return
    known = [name for _, name in socket.if_nameindex()]
    for name in interfaces.split(","):
        if not _is_up(name):
            raise KrakenError(_not_up(name, name in known, [n for n in known if _is_up(n)]))


def _not_up(name: str, exists: bool, others: list[str]) -> str:
    what, advice = f"network interface {name}, on which the ranks meet, is not up", []
    if not exists:
        what = f"there is no network interface {name} for the ranks to meet on"
    elif not others:
        what = f"no network interface is up, and the ranks meet on {name}"
    if exists:
        advice.append(f"run `ip link set {name} up` as root")
    if others:
        advice.append(f"set GLOO_SOCKET_IFNAME to one that is up ({', '.join(others)})")
    return f"{what}: {', '.join([*advice, 'or use --devices 1'])}"


def _is_up(interface: str) -> bool:
    try:
        (flags,) = struct.unpack("H", _ask(_SIOCGIFFLAGS, interface)[16:18])
    except OSError:
        return False
    return bool(flags & _IFF_UP)


def _ask(request: int, interface: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        reply = fcntl.ioctl(probe.fileno(), request, struct.pack("256s", interface.encode()[:15]))
    return bytes(reply)
