"""Which network interface the ranks meet on, and whether it is up."""

import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

from krakenlm.errors import KrakenError

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_IFF_UP = 1
# Linux: address, interface's number, prefix, scope, flags, interface's name.
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")
_LINK_LOCAL = "20"


def own_address() -> str:
    """The address under which the other ranks reach this one: that of gloo's interface.

    IPv4 where there is one, else IPv6.

    Raises:
        OSError: the interface is not there, or has no address.
    """
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
    if interfaces:
        return address_of(interfaces)
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    family, _, _, _, place = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing: asks which interface leads there
        return str(probe.getsockname()[0])


def address_of(interfaces: str) -> str:
    """The address of an interface; of the first, where several have commas between.

    Raises:
        OSError: it is not there, or has no address.
    """
    interface = interfaces.partition(",")[0]
    try:
        return socket.inet_ntoa(_ask(_SIOCGIFADDR, interface)[20:24])
    except OSError:
        addresses = _ipv6_of(interface)
        if not addresses:
            raise
        return addresses[0]


def _ipv6_of(interface: str) -> list[str]:
    """The interface's IPv6 addresses but for those that are good on one cable alone."""
    if not _IPV6_ADDRESSES.is_file():
        return []
    lines = map(str.split, _IPV6_ADDRESSES.read_text(encoding="ascii").splitlines())
    return [
        socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
        for address, _, _, scope, _, name in lines
        if name == interface and scope != _LINK_LOCAL
    ]


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
