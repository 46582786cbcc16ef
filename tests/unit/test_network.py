"""Which interface ranks meet on, and what is said where it is not up."""

import socket
import sys

import pytest

from krakenlm.errors import KrakenError
from krakenlm.ranks import network
from krakenlm.ranks.network import address_of, check_interface, own_address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


@pytest.mark.parametrize(
    ("up", "interfaces", "message"),
    [
        ({"lo", "eth7"}, "lo", None),
        ({"lo", "eth7"}, "eth7,lo", None),
        (
            set(),
            "lo",
            "no network interface is up, and the ranks meet on lo: run `ip link set lo up` as "
            "root, or use --devices 1",
        ),
        (
            {"eth7"},
            "lo",
            "network interface lo, on which the ranks meet, is not up: run `ip link set lo up` as "
            "root, set GLOO_SOCKET_IFNAME to one that is up (eth7), or use --devices 1",
        ),
        (
            {"lo", "eth7"},
            "eth7,eth8",
            "there is no network interface eth8 for the ranks to meet on: set GLOO_SOCKET_IFNAME "
            "to one that is up (lo, eth7), or use --devices 1",
        ),
    ],
)
def test_an_interface_that_is_not_up_is_refused_with_what_to_do(
    monkeypatch, up, interfaces, message
):
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth7")])
    monkeypatch.setattr(network, "_is_up", lambda name: name in up)
    if message is None:
        check_interface(interfaces)
        return
    with pytest.raises(KrakenError) as refused:
        check_interface(interfaces)
    assert str(refused.value) == message


def test_the_loopback_interface_and_its_address(monkeypatch):
    if not network._is_up("lo"):
        pytest.skip("this machine's loopback interface is not up")
    check_interface("lo")
    assert address_of("lo") == address_of("lo,eth7") == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert own_address() == "127.0.0.1"
    assert not network._is_up("none7")
