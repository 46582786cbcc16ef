"""The same models over lengths of prompt, links and degrees, and their memory over contexts."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from krakenlm.bench.models import Contender
from krakenlm.config import ModelConfig
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.plan.candidates import KV_HEADS, Wish, alone, candidates, with_kv_heads
from krakenlm.plan.device import DTYPES
from krakenlm.plan.link import by_hand
from krakenlm.plan.memory import cache_bytes, weight_bytes
from krakenlm.plan.planner import Setup, plan, shards_of
from krakenlm.transport.links import Link

_SHORTEST = 32
_RATES_GBPS = (0.1, 1.0, 10.0, 25.0, 100.0, 400.0, 2000.0)
_LATENCY_US = 10.0
_CONTEXTS = tuple(1024 << i for i in range(8))

Lines = dict[str, list[float | None]]


class MemoryCurve(NamedTuple):
    """What one device holds of a model, over the context.

    Attributes:
        label: of the model.
        devices: how many share it.
        weights: bytes.
        contexts: tokens.
        cache: bytes at each context.
    """

    label: str
    devices: int
    weights: int
    contexts: tuple[int, ...]
    cache: tuple[int, ...]


def over_lengths(
    models: Sequence[Contender], devices: int, setup: Setup
) -> tuple[list[int], Lines]:
    """Milliseconds to the first token, for prompts of 32 tokens up to the model's context."""
    longest = min(model.config.max_position_embeddings for model in models)
    lengths = list(_doubling(min(_SHORTEST, longest), longest))
    first = replace(setup, output_len=1)
    lines: Lines = {_kind(m): [_ttft(m, devices, n, first) for n in lengths] for m in models}
    return lengths, lines


def over_links(
    models: Sequence[Contender], devices: int, input_len: int, setup: Setup
) -> tuple[list[float], Lines]:
    """The same over rates of a link of 10 us, in Gbit/s."""
    links = [by_hand(Link(gbps=rate, latency_us=_LATENCY_US)) for rate in _RATES_GBPS]
    setups = [replace(setup, output_len=1, kernel=None, link=link) for link in links]
    lines: Lines = {_kind(m): [_ttft(m, devices, input_len, s) for s in setups] for m in models}
    return list(_RATES_GBPS), lines


def over_degrees(
    shape: ModelConfig, wish: Wish, devices: Sequence[int], input_len: int, setup: Setup
) -> tuple[list[int], Lines]:
    """The same over numbers of devices; Krakens of one kind are one line, whatever their width."""
    first = replace(setup, output_len=1)
    degrees = sorted({1, *devices})
    lines: Lines = {}
    for place, degree in enumerate(degrees):
        models = [alone(shape)] if degree == 1 else candidates(shape, wish, degree).models
        for model in models:
            line = lines.setdefault(_kind(model), [None] * len(degrees))
            line[place] = _ttft(model, degree, input_len, first)
    return degrees, lines


def memory_curves(shape: ModelConfig, devices: Sequence[int], setup: Setup) -> list[MemoryCurve]:
    """Weights and KV cache a device for the shape itself and its Krakens with MHA, GQA and MQA."""
    element = DTYPES[setup.dtype]
    curves = []
    for degree in sorted({1, *devices}):
        for label, config in _memory_models(shape, degree):
            shards = shards_of(config, degree, setup)
            fullest = max(shards, key=lambda shard: weight_bytes(shard, element))
            caches = tuple(
                max(
                    cache_bytes(shard, element, batch=setup.batch_size, positions=context)
                    for shard in shards
                )
                for context in _CONTEXTS
            )
            weights = weight_bytes(fullest, element)
            curves.append(MemoryCurve(label, degree, weights, _CONTEXTS, caches))
    return curves


def _memory_models(shape: ModelConfig, degree: int) -> Iterator[tuple[str, ModelConfig]]:
    yield shape.wiring, shape
    if degree == 1 or shape.traits.depends_on_degree:
        return
    for kind in KV_HEADS:
        with contextlib.suppress(ConfigError):  # this degree has no such model
            yield f"kraken ({kind.upper()})", with_kv_heads(shape, degree, kind)


def _kind(model: Contender) -> str:
    wiring = model.config.wiring
    if model.variant is not None:
        return f"{wiring} ({model.variant})"
    return wiring if model.config.message_parts == 1 else f"{wiring}/{model.config.message_parts}"


def _ttft(model: Contender, devices: int, input_len: int, setup: Setup) -> float | None:
    """Milliseconds, or None where the model cannot be shared out so."""
    try:
        return 1e3 * plan(model, devices, input_len, setup).prefill.seconds
    except KrakenError:
        return None


def _doubling(first: int, last: int) -> Iterator[int]:
    while first < last:
        yield first
        first *= 2
    yield last
