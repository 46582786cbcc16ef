"""What carries sums between ranks, and that an overlap that regresses is caught."""

import functools
import hashlib
import os
import time
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from krakenlm.config import WIRINGS, ModelConfig, WiringName
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.model.reduce import Ready
from krakenlm.model.shard import split
from krakenlm.model.wiring import WrappedBlock
from krakenlm.ranks.launch import Rank, launch
from krakenlm.transport import shared_memory, sockets
from krakenlm.transport.connect import Connections, connect
from krakenlm.transport.links import Link

pytestmark = [pytest.mark.dist, pytest.mark.alone]

TRANSPORTS = ("shared-memory", "sockets", "process-group")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Smaller than a page, larger than the first slots of shared memory, larger than a socket's
# buffer, small again.
SIZES = (1, 700, 20_000, 300_000, 1_500_000, 50)
UNDER_WAY = 6
LAYERS = 4
BLOCK_SECONDS = 0.05
LINK = Link(gbps=1000, latency_us=30_000)
SHAPE = {
    "hidden_size": 24, "num_hidden_layers": LAYERS, "vocab_size": 61, "max_position_embeddings": 48,
}  # fmt: skip
CONFIG = ModelConfig(wiring="kraken", num_sublayers=6, heads_per_sublayer=2, **SHAPE)
TIMED: dict[WiringName, ModelConfig] = {
    name: ModelConfig(
        wiring=name,
        num_sublayers=2 if traits.depends_on_degree else 1,
        heads_per_sublayer=2 if traits.depends_on_degree else 4,
        **SHAPE,
    )
    for name, traits in WIRINGS.items()
}


def drawn(rank: int, number: int, size: int, dtype: torch.dtype, branches: int = 1) -> Tensor:
    """What every rank knows that a rank sends."""
    generator = torch.Generator().manual_seed(1000 * rank + number)
    return torch.randn(branches, 1, 1, size, generator=generator).to(dtype)


def error(found: Tensor, sent: list[Tensor]) -> float:
    """The largest distance to the exact sum, in parts of what was added up."""
    exact, scale = torch.zeros(()), torch.zeros(())
    for branches in sent:
        exact = exact + branches.double().sum(0, keepdim=True)
        scale = scale + branches.double().abs().sum(0, keepdim=True)
    assert found.shape == exact.shape
    return float(((found.double() - exact).abs() / scale).max())


def fingerprint(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def each_sum(rank: Rank, connections: Connections):
    for name, dtype in DTYPES.items():
        for number, size in enumerate(SIZES):
            branches = 1 + number % 3
            mine = drawn(rank.index, number, size, dtype, branches)
            kept = mine.clone()
            found = connections.streams.begin(mine).wait()
            assert torch.equal(mine, kept)
            sent = [drawn(r, number, size, dtype, branches) for r in range(rank.size)]
            assert found.dtype == dtype
            yield f"{size} {name}", error(found, sent), fingerprint(found)


def sums_under_way(rank: Rank, connections: Connections):
    """Several begun before the first is awaited; messages grow meanwhile, and inputs change."""
    pending = []
    for number in range(UNDER_WAY):
        mine = drawn(rank.index, number, 30_000 * (1 + number), torch.float32)
        pending.append(connections.streams.begin(mine))
        mine.fill_(float("nan"))  # begun is begun
    results = [p.wait() for p in pending]
    for number, found in enumerate(results):
        size = 30_000 * (1 + number)
        sent = [drawn(r, number, size, torch.float32) for r in range(rank.size)]
        yield f"under way {number}", error(found, sent), fingerprint(found)


def many_in_turn(rank: Rank, connections: Connections):
    """More than the slots of a ring, two under way; a rank that is late loses nothing."""
    before = connections.streams.begin(drawn(rank.index, 0, 5, torch.float32))
    for number in range(1, 60):
        if number % 20 == rank.index:
            time.sleep(0.01)
        pending = connections.streams.begin(drawn(rank.index, number, 5, torch.float32))
        found, before = before.wait(), pending
        sent = [drawn(r, number - 1, 5, torch.float32) for r in range(rank.size)]
        yield f"in turn {number}", error(found, sent), fingerprint(found)
    before.wait()


def awaited_out_of_order(rank: Rank, connections: Connections) -> list[float]:
    """As chunks of a Ladder prompt await their first sums, one rank being late."""
    pending, results = {}, []

    def begin(*numbers: int) -> None:
        for number in numbers:
            branches = torch.full((1, 1, 1, 5), float(number))
            pending[number] = connections.streams.begin(branches)

    def wait(*numbers: int) -> None:
        results.extend(float(pending[n].wait()[0, 0, 0, 0]) / rank.size for n in numbers)

    begin(1, 2, 3, 4)
    wait(1)
    begin(5)
    wait(3)
    begin(6)
    if rank.index == 1:
        time.sleep(0.2)
    for number in (2, 4, 5, 6):
        wait(number)
        begin(number + 5 if number == 2 else number + 4)
    wait(7, 8, 9, 10)
    return results


def gathers(rank: Rank, connections: Connections):
    """Tensors of several types and sizes, one of which does not lie in order; none is summed."""
    makers = {
        "numbers": lambda r: torch.arange(6).view(2, 3) + (r << 40),
        "columns": lambda r: drawn(r, 1, 12, torch.float32).view(3, 4).t(),
        "one": lambda r: torch.tensor(r / 3, dtype=torch.float64),
        "none": lambda r: torch.empty(2, 0),
        "large": lambda r: drawn(r, 2, 400_000, torch.bfloat16),
    }
    for name, make in makers.items():
        found = connections.everyone.gather(make(rank.index))
        wanted = torch.stack([make(r) for r in range(rank.size)])
        assert found.dtype == wanted.dtype
        yield f"gathered {name}", float(not torch.equal(found, wanted)), fingerprint(found)


def close_on_one_rank(rank: Rank, connections: Connections) -> str:
    """What a rank hears that waits for one which is gone."""
    if rank.index == rank.size - 1:
        connections.close()
        return ""
    try:
        connections.streams.begin(torch.ones(1, 1, 1, 5)).wait()
    except RuntimeError as failure:
        return str(failure)
    return "nothing"


class SlowBlock(WrappedBlock):
    """A block that also takes its time."""

    def compute(self, part, function, x):
        end = time.perf_counter() + BLOCK_SECONDS
        y = function(x)
        time.sleep(max(0.0, end - time.perf_counter()))
        return y


class AwaitsAtOnce:
    """What a wiring does to its sums if it awaits them where it begins them."""

    def __init__(self, inner) -> None:
        self._inner = inner

    def begin(self, branches):
        total = self._inner.begin(branches).wait()
        return Ready(total)


def prefill_seconds(rank: Rank, config: ModelConfig, around=lambda reducer: reducer) -> float:
    """The best of a few runs, on a machine that may be busy."""
    engine = Engine.random(config, rank, torch.float32, EngineOptions(link=LINK))
    streams = around(engine.connections.streams)
    engine = engine.with_connections(engine.connections._replace(streams=streams))
    seconds = []
    with engine.session([[1] * 8], 1) as session:
        for _ in range(2):
            torch.distributed.barrier()
            start = time.perf_counter()
            session.prefill(wrap=lambda index, block: SlowBlock(block))
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def exposed_links(name: WiringName, seconds: float) -> float:
    """How many times the link's latency a prefill took beside its compute."""
    blocks = WIRINGS[name].norms_per_layer * LAYERS
    return (seconds - blocks * BLOCK_SECONDS) / (LINK.latency_us * 1e-6)


def overlaps_as_it_should(name: WiringName, seconds: float) -> bool:
    """Whether not more than the sums with nothing to hide behind were exposed, within one."""
    traits = WIRINGS[name]
    return exposed_links(name, seconds) < traits.allreduces(LAYERS) - traits.hidden(LAYERS) + 1


def exchange(rank: Rank) -> None:
    shard = split(CONFIG, rank.size)[rank.index]
    for transport in TRANSPORTS:
        connections = connect(rank, shard, transport)
        assert connections.transport == transport
        for check in (each_sum, sums_under_way, many_in_turn, gathers):
            for what, wrong_by, bits in check(rank, connections):
                rank.emit(("sum", rank.index, f"{transport}: {what}", wrong_by, bits))
        rank.emit(("order", rank.index, transport, awaited_out_of_order(rank, connections)))
        if transport == "sockets":
            rank.emit(("closed", rank.index, close_on_one_rank(rank, connections)))
    if rank.size == 2:
        for name, config in TIMED.items():
            rank.emit(("seconds", rank.index, name, prefill_seconds(rank, config)))
        seconds = prefill_seconds(rank, TIMED["kraken"], AwaitsAtOnce)
        rank.emit(("seconds", rank.index, "awaited at once", seconds))


@pytest.fixture(scope="module")
def said():
    """What the ranks said, [kind, rank, ...]; as many ranks as asked for are started once."""

    @functools.cache
    def launched(devices: int) -> list[tuple]:
        messages: list[tuple] = []
        launch(exchange, [], devices=devices, on_message=messages.append, device_type="cpu")
        return messages

    return launched


def of_kind(messages: list[tuple], kind: str) -> list[tuple]:
    return [message[1:] for message in messages if message[0] == kind]


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sums_are_right_and_have_the_same_bits_on_every_rank(said, transport, devices):
    bits = defaultdict(set)
    count = 0
    for _, what, wrong_by, found in of_kind(said(devices), "sum"):
        if what.startswith(transport):
            limit = 3 * 2.0**-8 if "bfloat16" in what else 1e-6  # three roundings
            assert wrong_by <= limit, what
            bits[what].add(found)
            count += 1
    assert count == devices * len(bits)
    assert len(bits) == 2 * len(SIZES) + UNDER_WAY + 59 + 5
    assert {what for what, found in bits.items() if len(found) > 1} == set()


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sums_may_be_awaited_in_another_order_than_they_were_begun(said, transport, devices):
    found = [sums for _, by, sums in of_kind(said(devices), "order") if by == transport]
    assert found == devices * [[1, 3, 2, 4, 5, 6, 7, 8, 9, 10]]


@pytest.mark.parametrize("devices", [2, 3])
def test_a_rank_that_closed_its_connections_is_named_to_who_waits_for_it(said, devices):
    heard = of_kind(said(devices), "closed")
    gone = devices - 1
    assert sorted(heard) == [
        *((rank, f"rank {gone} has closed its connection") for rank in range(gone)),
        (gone, ""),
    ]


def vanish(rank: Rank, transport: str) -> None:
    shard = split(CONFIG, rank.size)[rank.index]
    connections = connect(rank, shard, transport)
    connections.streams.begin(torch.ones(1, 1, 1, 5)).wait()
    if rank.index == 1:
        os._exit(3)
    connections.streams.begin(torch.ones(1, 1, 1, 5)).wait()


@pytest.mark.parametrize("transport", ["shared-memory"])  # the one that cannot notice by itself
def test_a_rank_that_dies_ends_those_that_wait_for_it(transport):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code 3"):
        launch(vanish, [transport], devices=2, on_message=print, device_type="cpu")
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("wiring", WIRINGS)
def test_over_a_slow_link_a_prefill_takes_its_compute_and_the_sums_it_cannot_hide(said, wiring):
    traits = WIRINGS[wiring]
    exposed = traits.allreduces(LAYERS) - traits.hidden(LAYERS)
    found = [seconds for _, name, seconds in of_kind(said(2), "seconds") if name == wiring]
    assert len(found) == 2
    for seconds in found:
        assert overlaps_as_it_should(wiring, seconds), f"{exposed_links(wiring, seconds)} exposed"
        assert exposed_links(wiring, seconds) >= exposed


def test_a_wiring_that_awaits_its_sums_too_early_is_caught(said):
    found = of_kind(said(2), "seconds")
    broken = [seconds for _, name, seconds in found if name == "awaited at once"]
    assert len(broken) == 2
    assert not any(overlaps_as_it_should("kraken", seconds) for seconds in broken)
    # Neither would a Kraken pass whose sums were exposed like those of the standard wiring.
    standard = [seconds for _, name, seconds in found if name == "standard"]
    assert not any(overlaps_as_it_should("kraken", seconds) for seconds in standard)


def far_ahead(rank: Rank, transport: str) -> None:
    shared_memory._TIMEOUT_SECONDS = sockets._TIMEOUT_SECONDS = 5.0
    connections = connect(rank, split(CONFIG, rank.size)[rank.index], transport)
    pending = [
        connections.streams.begin(torch.full((1, 1, 1, 100_000), float(n))) for n in range(100)
    ]
    rank.emit([float(p.wait()[0, 0, 0, 0]) for p in pending])
    connections.streams.begin(torch.ones(1, 1, 1, 8_000_000)).wait()
    connections.close()


@pytest.mark.parametrize("transport", ["shared-memory", "sockets"])  # those with limits of ours
def test_more_sums_under_way_than_slots_or_buffers_hold_end_all_the_same(transport):
    heard: list[list[float]] = []
    launch(far_ahead, [transport], devices=2, on_message=heard.append, device_type="cpu")
    assert heard == 2 * [[2.0 * n for n in range(100)]]
