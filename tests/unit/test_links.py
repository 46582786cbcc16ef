"""Emulated links: what they are called, and when they let a sum arrive."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from krakenlm.errors import KrakenError
from krakenlm.transport import links
from krakenlm.transport.links import EmulatedLink, Link

TICK = 1e-7
"""Seconds that looking at the clock takes here."""


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is looked at and where somebody sleeps, and then too far."""
    clock = SimpleNamespace(now=100.0, slept=0.0)

    def look() -> float:
        clock.now += TICK
        return clock.now

    def sleep(seconds: float) -> None:
        assert seconds > 0
        clock.slept += seconds
        clock.now += seconds + 1e-4

    monkeypatch.setattr(links, "time", SimpleNamespace(perf_counter=look, sleep=sleep))
    return clock


class Instant:
    """Sums without ado, or after some seconds of the clock; writes down what it is asked."""

    def __init__(self, clock, seconds: float = 0.0) -> None:
        self.clock, self.seconds = clock, seconds
        self.calls: list[str] = []

    def begin(self, branches):
        number = sum(call.startswith("begin") for call in self.calls) + 1
        self.calls.append(f"begin {number}")
        done = self.clock.now + self.seconds

        def wait():
            self.calls.append(f"wait {number}")
            self.clock.now = max(self.clock.now, done)
            return branches.sum(0, keepdim=True)

        return SimpleNamespace(wait=wait)

    def gather(self, x):
        self.clock.now += self.seconds
        return torch.stack([x, x])

    def close(self):
        self.calls.append("close")


def message(megabytes: float, branches: int = 1) -> torch.Tensor:
    return torch.ones(branches, 1, 1, int(megabytes * 1e6) // 4)


def seconds(clock, pending) -> float:
    """What waiting takes."""
    start = clock.now
    pending.wait()
    return clock.now - start


def near(wanted: float):
    return pytest.approx(wanted, abs=10 * TICK)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("gbps=1", Link(gbps=1)),
        ("gbps=0.1,latency_us=50", Link(gbps=0.1, latency_us=50)),
        ("latency_us=2.5,gbps=100", Link(gbps=100, latency_us=2.5)),
        ("real", None),
    ],
)
def test_links_are_read_in_words_and_written_in_the_same(text, link):
    assert Link.parse(text) == link
    if link is not None:
        assert Link.parse(str(link)) == link


def test_a_link_says_what_it_is():
    assert str(Link(gbps=1.0, latency_us=50.0)) == "gbps=1,latency_us=50"
    assert str(Link(gbps=0.1)) == "gbps=0.1,latency_us=0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--link : write real, or for instance gbps=1,latency_us=50"),
        ("fast", "--link fast: write real"),
        ("gbps", "write real"),
        ("gbps=", "write real"),
        ("gbps=quick", "write real"),
        ("gbps=1,gbps=2", "write real"),
        ("gbps=1,latency=5", "write real"),
        ("gbps=1 latency_us=5", "write real"),
        ("gbps=1,", "write real"),
        ("latency_us=50", "--link latency_us=50: gbps=RATE is missing"),
        ("gbps=0", "--link gbps=0: needs more than 0"),
        ("gbps=-1", "needs more than 0"),
        ("gbps=nan", "needs more than 0"),
        ("gbps=inf", "needs more than 0"),
        ("gbps=1,latency_us=-1", "--link latency_us=-1: needs 0 or more"),
        ("gbps=1,latency_us=nan", "needs 0 or more"),
        ("gbps=1,latency_us=inf", "needs 0 or more"),
    ],
)
def test_what_is_no_link_is_refused(text, message):
    with pytest.raises(KrakenError, match=message):
        Link.parse(text)


def test_two_ranks_exchange_in_one_step_and_more_pass_parts_round():
    link = Link(gbps=1, latency_us=50)
    assert link.seconds_on_wire(1_000_000, 2) == pytest.approx(8e-3)
    assert link.seconds_behind(2) == pytest.approx(50e-6)
    assert link.seconds_on_wire(1_000_000, 4) == pytest.approx(1.5 * 8e-3)
    assert link.seconds_behind(4) == pytest.approx(6 * 50e-6)


def test_a_sum_arrives_when_its_bytes_and_the_latency_have_passed(clock):
    link = EmulatedLink(Instant(clock), Link(gbps=1, latency_us=500), ranks=2)
    pending = link.begin(message(1.0, branches=3))  # summed here first: one megabyte travels
    assert seconds(clock, pending) == near(8.5e-3)
    assert clock.slept > 7e-3  # rather than spinning all the time


def test_compute_meanwhile_hides_the_link(clock):
    link = EmulatedLink(Instant(clock), Link(gbps=1, latency_us=500), ranks=2)
    pending = link.begin(message(1.0))
    clock.now += 5e-3
    assert seconds(clock, pending) == near(3.5e-3)
    pending = link.begin(message(1.0))
    clock.now += 10e-3
    assert seconds(clock, pending) == near(0.0)


def test_messages_take_the_link_one_behind_the_other(clock):
    link = EmulatedLink(Instant(clock), Link(gbps=1, latency_us=500), ranks=2)
    start = clock.now
    first, second = link.begin(message(1.0)), link.begin(message(0.5))
    first.wait()
    assert clock.now - start == near(8.5e-3)
    second.wait()
    assert clock.now - start == near(12.5e-3)  # its bytes follow at once, so latency counts once
    clock.now += 1.0  # the link is idle meanwhile, and saves nothing up
    assert seconds(clock, link.begin(message(1.0))) == near(8.5e-3)


def test_a_sum_is_never_earlier_than_the_real_one(clock):
    link = EmulatedLink(Instant(clock, seconds=20e-3), Link(gbps=1), ranks=2)
    assert seconds(clock, link.begin(message(1.0))) == near(20e-3)
    assert seconds(clock, link.begin(message(5.0))) == near(40e-3)


def test_a_gather_is_as_late_as_a_sum_of_all_it_brings(clock):
    link = EmulatedLink(Instant(clock), Link(gbps=1, latency_us=500), ranks=2)
    x = message(0.5)
    start = clock.now
    assert torch.equal(link.gather(x), torch.stack([x, x]))
    assert clock.now - start == near(8.5e-3)
    start = clock.now
    EmulatedLink(Instant(clock, seconds=20e-3), Link(gbps=1), ranks=2).gather(x)
    assert clock.now - start == near(20e-3)


def test_the_real_sums_are_what_arrives_and_in_the_same_order(clock):
    inner = Instant(clock)
    link = EmulatedLink(inner, Link(gbps=100), ranks=2)
    branches = [torch.randn(3, 1, 2, 4) for _ in range(3)]
    begun = [link.begin(b) for b in branches]
    for b, pending in zip(branches, begun, strict=True):
        assert torch.equal(pending.wait(), b.sum(0, keepdim=True))
    link.close()
    both = itertools.product(("begin", "wait"), (1, 2, 3))
    assert inner.calls == [*(f"{what} {number}" for what, number in both), "close"]
