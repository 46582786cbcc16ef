"""The AllReduce of a layer is in flight while the next layer's attention runs."""

import time

import pytest
import torch

from krakenlm.config import ModelConfig
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.trace import Event, Recorder, RecordingReducer
from krakenlm.model.wiring import WrappedBlock
from krakenlm.ranks.launch import Rank, launch

pytestmark = [pytest.mark.dist, pytest.mark.alone]

LAYERS = 4
DELAY = 0.05
SHAPE = {
    "hidden_size": 24, "num_hidden_layers": LAYERS, "vocab_size": 61, "max_position_embeddings": 48,
}  # fmt: skip
CONFIGS = {
    "kraken": ModelConfig(wiring="kraken", num_sublayers=2, heads_per_sublayer=2, **SHAPE),
    "standard": ModelConfig(wiring="standard", num_sublayers=1, heads_per_sublayer=4, **SHAPE),
    "parallel": ModelConfig(wiring="parallel", num_sublayers=1, heads_per_sublayer=4, **SHAPE),
    "ladder": ModelConfig(wiring="ladder", num_sublayers=1, heads_per_sublayer=4, **SHAPE),
}


class LateBlock(WrappedBlock):
    """A block whose results come late, so that this rank joins every AllReduce late."""

    def compute(self, part, function, x):
        y = function(x)
        time.sleep(DELAY)
        return y


def record(rank: Rank, configs: dict[str, ModelConfig]) -> None:
    # gloo tells when a sum is complete, other transports only when it has been awaited.
    runs = [("process-group", name) for name in configs] + [("shared-memory", "kraken")]
    for transport, name in runs:
        options = EngineOptions(transport=transport)
        events = recorded(Engine.random(configs[name], rank, torch.float32, options))
        if rank.index == 0:
            rank.emit(((transport, name), events))


def recorded(engine: Engine) -> list[Event]:
    """The events of one prefill, the second rank being late everywhere."""
    recorder = Recorder(engine.rank.index)

    def wrap(index, block):
        block = LateBlock(block) if engine.rank.index == 1 else block
        return recorder.wrap(index, block)

    streams = RecordingReducer(recorder, engine.connections.streams)
    engine = engine.with_connections(engine.connections._replace(streams=streams))
    with engine.session([[1] * 8], 1) as session:
        session.prefill()  # connects the ranks
        torch.distributed.barrier()
        recorder.events.clear()
        session.prefill(wrap=wrap)
    torch.distributed.barrier()
    return recorder.events


@pytest.fixture(scope="module")
def all_events() -> dict[tuple[str, str], list[Event]]:
    heard: dict[tuple[str, str], list[Event]] = {}
    launch(record, [CONFIGS], devices=2, on_message=lambda m: heard.update([m]), device_type="cpu")
    return heard


@pytest.fixture(scope="module")
def events(all_events) -> dict[str, list[Event]]:
    """Those over gloo, by wiring."""
    return {name: found for (by, name), found in all_events.items() if by == "process-group"}


def named(events: list[Event], name: str) -> list[Event]:
    return sorted((e for e in events if e.name.startswith(name)), key=lambda e: e.start)


def test_kraken_attends_while_the_streams_are_summed(events):
    allreduces = named(events["kraken"], "AllReduce")
    attentions = named(events["kraken"], "attention")
    assert (len(allreduces), len(attentions)) == (LAYERS, LAYERS)
    for allreduce, attention in zip(allreduces[:-1], attentions[1:], strict=True):
        assert allreduce.start < attention.start
        assert attention.end < allreduce.end


def test_ladder_runs_the_next_half_block_meanwhile(events):
    allreduces = named(events["ladder"], "AllReduce")
    halves = sorted(
        named(events["ladder"], "attention") + named(events["ladder"], "feed-forward"),
        key=lambda event: event.start,
    )
    assert len(allreduces) == 2 * LAYERS
    for allreduce, half in zip(allreduces[:-1], halves[1:], strict=True):
        assert allreduce.start < half.start
        assert half.end < allreduce.end


@pytest.mark.parametrize(("wiring", "number"), [("standard", 2 * LAYERS), ("parallel", LAYERS)])
def test_standard_and_parallel_compute_nothing_meanwhile(events, wiring, number):
    allreduces = named(events[wiring], "AllReduce")
    compute = named(events[wiring], "attention") + named(events[wiring], "feed-forward")
    waits = named(events[wiring], "wait")
    assert len(allreduces) == len(waits) == number
    assert len(compute) == (LAYERS if wiring == "parallel" else 2 * LAYERS)
    for wait in waits:
        # The late rank makes every wait long, and no block runs within one.
        assert not any(block.start < wait.end and wait.start < block.end for block in compute)
    assert sum(wait.end - wait.start for wait in waits) > 0.5 * DELAY * len(waits)


def test_a_sum_whose_completion_nobody_tells_ends_with_its_wait(all_events):
    found = all_events["shared-memory", "kraken"]
    allreduces, waits = named(found, "AllReduce"), named(found, "wait")
    assert len(allreduces) == len(waits) == LAYERS
    for allreduce, wait in zip(allreduces, waits, strict=True):
        assert allreduce.start <= wait.start
        assert 0 <= allreduce.end - wait.end < 0.5 * DELAY
