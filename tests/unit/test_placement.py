"""How units are shared out among ranks of unequal speed."""

import itertools
import random

import pytest
import torch

from krakenlm.config import WIRINGS, ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.model.decoder import Layer
from krakenlm.model.shard import split
from krakenlm.ranks import placement
from krakenlm.ranks.placement import balance, measure_unit, parse_placement


def placements(units: int, groups: int) -> list[tuple[int, ...]]:
    return [
        counts
        for counts in itertools.product(range(1, units + 1), repeat=groups)
        if sum(counts) == units
    ]


def times(placement: tuple[int, ...], seconds) -> list[float]:
    return [count * unit for count, unit in zip(placement, seconds, strict=True)]


def test_balance_finds_what_trying_everything_finds():
    draw = random.Random(0)
    for _ in range(400):
        groups = draw.randint(1, 4)
        units = draw.randint(groups, 9)
        seconds = [draw.randint(1, 12) for _ in range(groups)]

        def cost(placement, seconds=seconds):
            spread = max(placement) - min(placement)
            return max(times(placement, seconds)), sum(times(placement, seconds)), spread

        found = balance(units, seconds)
        best = min(map(cost, placements(units, len(seconds))))
        assert cost(found)[:2] == best[:2], (units, seconds, found)
        for group, other in itertools.combinations(range(groups), 2):
            if seconds[group] == seconds[other]:
                assert found[group] - found[other] in (0, 1)


def test_balance_of_measured_times_has_the_shortest_slowest_group():
    draw = random.Random(1)
    for _ in range(200):
        groups = draw.randint(1, 4)
        units = draw.randint(groups, 9)
        seconds = [draw.uniform(1e-5, 1e-3) for _ in range(groups)]
        best = min(max(times(one, seconds)) for one in placements(units, groups))
        assert max(times(balance(units, seconds), seconds)) == best


@pytest.mark.parametrize(
    ("units", "seconds", "wanted"),
    [
        (4, [1.0], (4,)),
        (4, [1.0, 1.0], (2, 2)),
        (5, [1.0, 1.0], (3, 2)),
        (4, [1.0, 3.0], (3, 1)),
        (4, [3.0, 1.0], (1, 3)),
        (3, [1.0, 100.0, 1.0], (1, 1, 1)),
        (8, [2.0, 1.0, 1.0], (1, 4, 3)),
        (96, [1.0, 2.0, 1.0], (39, 18, 39)),
    ],
)
def test_balance_of_plain_cases(units, seconds, wanted):
    assert balance(units, seconds) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("auto", "auto"), ("3,1", (3, 1)), ("4", (4,)), ("2, 1 ,1", (2, 1, 1)), ("0,4", (0, 4))],
)
def test_placement_is_read_from_the_command_line(text, wanted):
    assert parse_placement(text) == wanted


@pytest.mark.parametrize(
    "text", ["", ",", "3,", "3;1", "3 1", "-1,5", "1.5,2", "Auto", "³,1", "9" * 5000, "3,1\n"]
)
def test_a_placement_that_is_none_is_refused(text):
    with pytest.raises(KrakenError, match=r"^--placement .*as in --placement 3,1, or auto$"):
        parse_placement(text)


def model(wiring: str, **changes) -> ModelConfig:
    fields = {
        "wiring": wiring, "num_sublayers": 4, "hidden_size": 64, "num_hidden_layers": 2,
        "heads_per_sublayer": 4, "kv_heads_per_sublayer": 2, "vocab_size": 50,
        "max_position_embeddings": 64,
    } | changes  # fmt: skip
    return ModelConfig.from_dict(fields)


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_unit_of_any_model_can_be_measured(wiring, position):
    for shard in split(model(wiring, position=position), 3):
        assert 0.0 < measure_unit(shard, torch.device("cpu"), torch.bfloat16, tokens=16) < 10.0


def test_a_unit_is_measured_where_units_outnumber_the_columns():
    shard = split(model("standard", num_sublayers=1, ffn_dim=1), 1)[0]
    assert measure_unit(shard, torch.device("cpu"), torch.float32, tokens=2) > 0.0


@pytest.mark.parametrize(
    ("wiring", "options", "heads", "columns"),
    [
        ("kraken", {"devices": 2}, 4, 13),
        ("kraken", {"devices": 4, "tensor_parallel": 2}, 2, 7),
        ("standard", {"devices": 2, "placement": (7, 1)}, 2, 7),
    ],
)
def test_one_unit_as_this_rank_holds_it_is_measured(wiring, options, heads, columns, monkeypatch):
    built = []

    class RecordedLayer(Layer):
        def __init__(self, config, layer_index):
            super().__init__(config, layer_index)
            built.append((config.num_attention_heads, config.ffn_dim))

    monkeypatch.setattr(placement, "Layer", RecordedLayer)
    shards = split(model(wiring, ffn_dim=13), **options)
    measure_unit(shards[1], torch.device("cpu"), torch.float32, tokens=4)
    assert built == [(heads, columns)]
