"""How many units of a model each group of ranks gets, where devices are not equally fast.

Shape letters: see ``krakenlm.model``.
"""

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Sequence
from typing import Literal

import torch

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.model.attention import AttentionContext, SdpaCore
from krakenlm.model.decoder import Layer, initialise_module
from krakenlm.model.rotary import rotary
from krakenlm.model.shard import Shard, split, units_of

Placement = tuple[int, ...] | Literal["auto"] | None
"""Units of each group of ranks; ``auto`` measures the ranks, None is as even as possible."""

_WARM_UP_RUNS = 2
_TIMED_RUNS = 5


def parse_placement(text: str) -> tuple[int, ...] | Literal["auto"]:
    """What follows ``--placement`` on the command line: ``3,1`` or ``auto``.

    Whether the numbers fit the model is for ``check_placement`` to say.

    Raises:
        KrakenError: neither of the two.
    """
    if text == "auto":
        return "auto"
    # Nine digits at most: int() refuses texts of thousands.
    if not re.fullmatch(r"[0-9]{1,9}( *, *[0-9]{1,9})*", text):
        shown = text if text and text.isprintable() else repr(text)
        raise KrakenError(
            f"--placement {shown}: give a number for each rank with commas between, as in "
            "--placement 3,1, or auto"
        )
    return tuple(int(number) for number in text.split(","))


def check_placement(
    config: ModelConfig,
    devices: int,
    placement: Placement,
    *,
    tensor_parallel: int,
) -> None:
    """Refuse to spread a model out in a way that cannot work, before anything is started.

    ``auto`` works wherever an even placement does, since every group gets a unit at least.

    Raises:
        KrakenError: see ``krakenlm.model.shard.split``.
    """
    fixed = None if placement == "auto" else placement
    split(config, devices, placement=fixed, tensor_parallel=tensor_parallel)


def balance(units: int, seconds_per_unit: Sequence[float]) -> tuple[int, ...]:
    """The placement whose slowest group of ranks is done soonest.

    Of several, the one with the smallest sum of all groups' times; of several again, the one that
    treats equally fast groups alike, the first of them getting what is left over.

    Args:
        units: to be shared out, at least one for each group.
        seconds_per_unit: each group's time for one unit.
    """
    groups = len(seconds_per_unit)
    assert 1 <= groups <= units
    assert all(0.0 < seconds < math.inf for seconds in seconds_per_unit)
    limits = _limits(units, seconds_per_unit)
    placement = [1] * groups
    for _ in range(units - groups):
        open_groups = [group for group in range(groups) if placement[group] < limits[group]]
        # The fastest first, which adds least to the sum; among equals the one with the fewest.
        chosen = min(open_groups, key=lambda group: (seconds_per_unit[group], placement[group]))
        placement[chosen] += 1
    return tuple(placement)


def _limits(units: int, seconds_per_unit: Sequence[float]) -> list[int]:
    """The most units each group has time for, in the shortest time that suffices for all units."""
    # Handing each unit to the group that will have finished it first reaches that time.
    placement = [1] * len(seconds_per_unit)
    for _ in range(units - len(placement)):
        ends = [(n + 1) * seconds for n, seconds in zip(placement, seconds_per_unit, strict=True)]
        placement[ends.index(min(ends))] += 1
    slowest = max(n * seconds for n, seconds in zip(placement, seconds_per_unit, strict=True))
    return [
        max(n for n in range(1, units + 1) if n * seconds <= slowest)
        for seconds in seconds_per_unit
    ]


@torch.inference_mode()
def measure_unit(shard: Shard, device: torch.device, dtype: torch.dtype, *, tokens: int) -> float:
    """Seconds that this rank's device takes for one layer of one unit, on random numbers.

    Args:
        shard: any part of the model. It says of which model, and which part of a sub-layer this
            rank holds where several share one; how many units it has makes no difference.
        device: where to measure.
        dtype: of weights and input.
        tokens: how many at once.
    """
    # Units that do not divide the feed-forward columns differ by one column: the last has most.
    unit = dataclasses.replace(shard, first=units_of(shard.config) - 1, count=1)
    config = unit.local_config
    with device:
        layer = Layer(config, layer_index=0)
        layer.apply(lambda module: initialise_module(module, config.initializer_range))
        x_1BTD = torch.randn(1, 1, tokens, config.hidden_size).to(dtype)
    layer.to(dtype).eval()
    turns = None
    if config.position == "rope":
        positions_BT = torch.arange(tokens, device=device)[None]
        turns = rotary(positions_BT, config)
    context = AttentionContext(SdpaCore(), turns)
    seconds = []
    for _ in range(_WARM_UP_RUNS + _TIMED_RUNS):
        _synchronise(device)
        start = time.perf_counter()
        if config.traits.norms_per_layer == 2:
            layer.attend(x_1BTD, context)
            layer.feed(x_1BTD)
        else:
            layer.attend_and_feed(x_1BTD, context)
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP_RUNS:])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
