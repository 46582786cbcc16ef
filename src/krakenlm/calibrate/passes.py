"""Passes of the engine over small models, and what they take beyond their operators alone.

A rank's program is traced as the planner does it, and its operators are timed by the tables that
were measured before. What the engine really takes is more: Python between two operators, views,
caches that another operator has filled. Over several models that is fitted as a factor on the
operators, a time for each of them, and one for the pass.
"""

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from krakenlm.bench.models import Contender, Wanted, in_wiring
from krakenlm.bench.ranks import gathered
from krakenlm.bench.runner import Runner
from krakenlm.calibrate.budget import Budget
from krakenlm.calibrate.points import Probe
from krakenlm.config import WIRINGS, ModelConfig
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.model.shard import split
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.program import Program, Work
from krakenlm.plan.trace import Pass, trace
from krakenlm.ranks.launch import Rank
from krakenlm.transport.connect import Transport

_HEAD = 64
_TOKENS = 9
"""To generate: the first, and eight that are timed together."""


class ProbeTime(NamedTuple):
    """Seconds of one model.

    Attributes:
        silent_ttft: of its prompt, with communication left out, on the slowest rank.
        silent_tpot: of a token after the first, likewise.
        ttft: of its prompt with communication, on rank 0.
        tpot: of a token.
    """

    silent_ttft: float
    silent_tpot: float
    ttft: float
    tpot: float


class Load(NamedTuple):
    """What a pass consists of.

    Attributes:
        seconds: of its operators, each timed alone.
        operators: how many.
    """

    seconds: float
    operators: int


class Fitted(NamedTuple):
    """What passes take beyond their operators: a factor, seconds an operator, seconds a pass.

    Attributes:
        error: median of how far the passes are from that, as a share.
    """

    slowdown: float
    operator: float
    once: float
    error: float


def contender(probe: Probe, ranks: int, vocabulary_size: int) -> Contender:
    """The model of a probe, for so many ranks."""
    wiring = (
        probe.wiring if ranks > 1 or not WIRINGS[probe.wiring].depends_on_degree else "standard"
    )
    shape = ModelConfig(
        wiring="standard",
        num_sublayers=1,
        hidden_size=probe.hidden,
        head_dim=_HEAD,
        heads_per_sublayer=ranks * max(1, round(probe.hidden / _HEAD / ranks)),
        num_hidden_layers=probe.layers,
        vocab_size=vocabulary_size,
        max_position_embeddings=probe.tokens + _TOKENS,
    )
    return in_wiring(shape, Wanted(wiring, wiring), max(ranks, 2), ["keep-width"])[0]


def time_passes(
    rank: Rank,
    models: Sequence[Contender],
    tokens: Sequence[int],
    dtype: torch.dtype,
    transport: Transport,
    budget: Budget,
    *,
    until: float,
) -> list[ProbeTime]:
    """Run all models round by round; medians."""
    runners = []
    for index, (model, count) in enumerate(zip(models, tokens, strict=True)):
        engine = Engine.random(model.config, rank, dtype, EngineOptions(transport=transport))
        prompts = [[token % model.config.vocab_size for token in range(count)]]
        runners.append(Runner(index, engine, prompts, _TOKENS, sums_alone=False))
    rounds: list[list[ProbeTime]] = [[] for _ in runners]
    for _ in budget.rounds(until, "passes of the engine", least=2):
        for runner, found in zip(runners, rounds, strict=True):
            timing = runner.round()
            later = (timing.latency - timing.ttft) / (_TOKENS - 1)
            found.append(ProbeTime(timing.no_comm_ttft, timing.no_comm_tpot, timing.ttft, later))
            budget.tell("passes of the engine")
    for runner in runners:
        runner.engine.connections.close()
    # Of the first rounds the first is a warm-up; rank 0 speaks for all.
    mine = [ProbeTime(*map(statistics.median, zip(*f[1:], strict=True))) for f in rounds]
    return gathered(rank, mine)[0]


def program_of(model: Contender, ranks: int, tokens: int, dtype: str, *, decodes: bool) -> Program:
    """Of rank 0; a token is one in the middle of those that were timed."""
    shard = split(model.config, ranks)[0]
    which = Pass(1, tokens + (_TOKENS // 2 if decodes else 0), decodes=decodes)
    return trace(shard, which, getattr(torch, dtype))


def load_of(program: Program, device: DeviceProfile, dtype: str) -> Load:
    """A pass without communication; messages are not put together either."""
    costs = device.costs(dtype, program.read_bytes)
    operators = [
        operator
        for item in program.items
        if isinstance(item, Work)
        for operator in item.operators
        if operator.part != "message"
    ]
    return Load(sum(costs(operator).seconds for operator in operators), len(operators))


def fit(loads: Sequence[Load], measured: Sequence[float]) -> Fitted:
    """What explains the passes best, none of it negative; relative errors count.

    Args:
        loads: what the passes consist of.
        measured: seconds of each.
    """
    columns = torch.tensor(
        [(load.seconds, float(load.operators), 1.0) for load in loads], dtype=torch.float64
    )
    relative = columns / torch.tensor(measured, dtype=torch.float64)[:, None]
    best: tuple[float, list[float]] | None = None
    for chosen in itertools.product((True, False), repeat=2):
        used = [0, *(i for i, is_used in enumerate(chosen, start=1) if is_used)]
        solved = torch.linalg.lstsq(
            relative[:, used], torch.ones(len(loads), 1, dtype=torch.float64), driver="gelsd"
        ).solution[:, 0]
        if solved.min() < 0.0:
            continue
        values = [0.0, 0.0, 0.0]
        for place, value in zip(used, solved.tolist(), strict=True):
            values[place] = value
        errors = (relative @ torch.tensor(values, dtype=torch.float64) - 1.0).abs()
        squares = float(errors.square().sum())
        if best is None or squares < best[0] - 1e-12:
            best = squares, [*values, float(errors.median())]
    assert best is not None, "the operators alone are never negative"
    return Fitted(*best[1])
