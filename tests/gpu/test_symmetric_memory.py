"""Sums through symmetric memory on two CUDA devices; run with ``pytest -m gpu`` where they are."""

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from krakenlm.config import ModelConfig
from krakenlm.engine.capture import capture
from krakenlm.errors import KrakenError
from krakenlm.model.shard import split
from krakenlm.ranks.launch import Rank, launch
from krakenlm.transport.collective import Collective
from krakenlm.transport.connect import connect
from krakenlm.transport.symmetric_memory import MAX_BYTES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

CONFIG = ModelConfig(
    wiring="kraken", num_sublayers=2, hidden_size=24, num_hidden_layers=2, heads_per_sublayer=2,
    vocab_size=61, max_position_embeddings=48,
)  # fmt: skip
# float16 is not the kernel's: its sums go another way and must be right all the same.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One number; sizes that no vector of 16 bytes divides; the largest message, and one beyond it.
SIZES = (1, 7, 700, 20_001, MAX_BYTES // 4, MAX_BYTES // 4 + 1, 1_500_000)
UNDER_WAY = 6
REPLAYS = 5


def drawn(rank: int, number: int, size: int, dtype: torch.dtype, branches: int = 1) -> Tensor:
    """What every rank knows that a rank sends."""
    generator = torch.Generator().manual_seed(1000 * rank + number)
    return torch.randn(branches, 1, 1, size, generator=generator).to(dtype)


def error(rank: Rank, found: Tensor, number: int, branches: int = 1) -> float:
    """The largest distance to the plain sum of what all ranks sent, in parts of what was added."""
    size = found.shape[-1]
    sent = [drawn(r, number, size, found.dtype, branches).double() for r in range(rank.size)]
    exact, scale = torch.cat(sent).sum(0), torch.cat(sent).abs().sum(0)
    assert found.shape == (1, 1, 1, size)
    return float(((found.cpu().double()[0] - exact).abs() / scale).max())


def each_sum(rank: Rank, streams: Collective):
    for dtype in DTYPES:
        for number, size in enumerate(SIZES):
            branches = 1 + number % 3
            mine = drawn(rank.index, number, size, dtype, branches).to(rank.device)
            kept = mine.clone()
            found = streams.begin(mine).wait()
            assert torch.equal(mine, kept) and found.dtype == dtype
            yield f"{size} {dtype}", error(rank, found, number, branches), found


def sums_under_way(rank: Rank, streams: Collective):
    """Awaited in another order than begun, while the allocator is given reasons to reuse memory."""
    weight = torch.randn(4096, 4096, device=rank.device)
    for turn in range(20):
        pending = {}
        for number in range(UNDER_WAY):
            size = 3000 * (1 + number)
            mine = drawn(rank.index, number, size, torch.float32).to(rank.device)
            pending[number] = streams.begin(mine)
            del mine
            torch.full((1, 1, 1, size), float("nan"), device=rank.device)
            if turn % rank.size == rank.index:
                weight @ weight  # this rank is late
        for number in (3, 0, 5, 1, 2, 4):
            found = pending.pop(number).wait()
            yield f"under way {number}", error(rank, found, number), found


def replayed(rank: Rank, streams: Collective):
    """Two sums in flight in a CUDA graph, beside compute, with new inputs for every replay."""
    first, second = (torch.zeros(1, 1, 1, 700, device=rank.device) for _ in range(2))

    def run(record) -> Tensor:
        reducer = record(streams)
        begun = [reducer.begin(x) for x in (first, second)]
        beside = first * 2
        later, sooner = begun[1].wait(), begun[0].wait()
        return torch.cat([sooner, later, beside])

    captured = capture(run, rank.device)
    for number in range(REPLAYS):
        first.copy_(drawn(rank.index, number, 700, torch.float32))
        second.copy_(drawn(rank.index, REPLAYS + number, 700, torch.float32))
        sooner, later, beside = captured.replay().clone().split(1)
        yield f"replay {number}", error(rank, sooner, number), sooner
        yield f"replay {number}, second", error(rank, later, REPLAYS + number), later
        assert torch.equal(beside, first * 2)
        eager = streams.begin(first).wait()
        yield f"between replays {number}", error(rank, eager, number), eager


def exchange(rank: Rank) -> None:
    try:
        connections = connect(rank, split(CONFIG, rank.size)[rank.index], "symmetric-memory")
    except KrakenError as refusal:
        rank.emit(("refused", str(refusal), 0.0, []))
        return
    for check in (each_sum, sums_under_way, replayed):
        for what, wrong_by, found in check(rank, connections.streams):
            rank.emit((check.__name__, what, wrong_by, found.double().flatten()[:50].tolist()))
    gathered = connections.everyone.gather(torch.tensor(rank.index, device=rank.device))
    rank.emit(("gathered", "gathered", 0.0, gathered.tolist()))
    connections.close()


@pytest.fixture(scope="module")
def said():
    messages: list[tuple] = []
    launch(exchange, [], devices=2, on_message=messages.append, device_type="cuda")
    if messages[0][0] == "refused":
        pytest.skip(messages[0][1])
    return messages


@pytest.mark.parametrize("check", [each_sum, sums_under_way, replayed])
def test_sums_equal_plain_sums_and_are_the_same_on_every_rank(said, check):
    found = defaultdict(list)
    for kind, what, wrong_by, values in said:
        if kind == check.__name__:
            limit = {"bfloat16": 3 * 2.0**-8, "float16": 3 * 2.0**-11}
            assert wrong_by <= limit.get(what.rpartition(".")[2], 1e-6), what
            found[what].append(values)
    wanted = {each_sum: 2 * len(SIZES) * len(DTYPES), sums_under_way: 40 * UNDER_WAY}
    assert sum(map(len, found.values())) == wanted.get(check, 2 * 3 * REPLAYS)
    assert all(values == of_all[0] for of_all in found.values() for values in of_all)


def test_tensors_are_gathered_in_rank_order(said):
    assert [values for kind, _, _, values in said if kind == "gathered"] == [[0, 1], [0, 1]]
