"""Time to the first token of several wirings on the same ranks.

The wirings are interleaved, so that a drifting machine stays fair. One recorded pass of each, the
middle one of five, makes the timeline.

Weights are random: they do not change how long a product takes. Each repetition runs every wiring
once, with communication and without.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import distributed as dist

from krakenlm.bench.results import Environment, LatencyReport, Quantiles, WiringLatency
from krakenlm.config import ModelConfig, count_parameters
from krakenlm.model.reduce import LocalReducer
from krakenlm.parallel.engine import Engine, check_request
from krakenlm.parallel.launch import Rank, launch, threads_per_rank
from krakenlm.parallel.trace import Event, Recorder, RecordingReducer

_WARM_UP = 2
_RECORDED_PASSES = 5

Timelines = dict[str, list[Event]]


class _Task(NamedTuple):
    configs: dict[str, ModelConfig]
    prompt_tokens: int
    repetitions: int


class _Repetition(NamedTuple):
    """Seconds to the first token of each wiring in one round."""

    whole: dict[str, float]
    without_communication: dict[str, float]


class _Recorded(NamedTuple):
    wiring: str
    events: list[Event]


def measure(
    configs: Mapping[str, ModelConfig],
    *,
    title: str,
    devices: int,
    prompt_tokens: int,
    repetitions: int,
    on_repetition: Callable[[], None] = lambda: None,
) -> tuple[LatencyReport, Timelines]:
    """Measure the first token of several models on CPU ranks, in float32.

    Args:
        configs: by wiring; ``standard`` among them is what speedups are against.
        title: what the report is about.
        devices: ranks, 2 or more.
        prompt_tokens: length of the prompt.
        repetitions: rounds that count, after a warm-up.
        on_repetition: called after every round, warm-up included.

    Returns:
        The report, and for each wiring the events of the middle one of five more, recorded passes.
    """
    for config in configs.values():
        check_request(config, [[0] * prompt_tokens], 1)
    rounds: list[_Repetition] = []
    timelines: Timelines = {wiring: [] for wiring in configs}

    def hear(message: _Repetition | _Recorded) -> None:
        if isinstance(message, _Recorded):
            timelines[message.wiring] += message.events
        else:
            rounds.append(message)
            on_repetition()

    task = _Task(dict(configs), prompt_tokens, _WARM_UP + repetitions)
    launch(_time_rank, [task], devices=devices, on_message=hear, device_type="cpu")
    report = LatencyReport(
        title=title,
        devices=devices,
        prompt_tokens=prompt_tokens,
        dtype="float32",
        repetitions=repetitions,
        environment=Environment.here(cores=threads_per_rank(1)),
        results=_summarise(configs, rounds[_WARM_UP:]),
    )
    return report, timelines


def rounds_of(repetitions: int) -> int:
    """How often ``measure`` calls ``on_repetition``."""
    return _WARM_UP + repetitions


def _summarise(
    configs: Mapping[str, ModelConfig], rounds: list[_Repetition]
) -> tuple[WiringLatency, ...]:
    whole = {w: Quantiles.of([1000 * r.whole[w] for r in rounds]) for w in configs}
    bound = {w: Quantiles.of([1000 * r.without_communication[w] for r in rounds]) for w in configs}
    return tuple(
        WiringLatency(
            wiring=wiring,
            parameters=count_parameters(config),
            ttft_ms=whole[wiring],
            no_comm_ttft_ms=bound[wiring],
            speedup=whole["standard"].median / whole[wiring].median,
        )
        for wiring, config in configs.items()
    )


def _time_rank(rank: Rank, task: _Task) -> None:
    torch.manual_seed(rank.index)
    engines = {w: Engine.random(c, rank, torch.float32) for w, c in task.configs.items()}
    generator = torch.Generator().manual_seed(0)
    smallest = min(config.vocab_size for config in task.configs.values())
    ids_1T = torch.randint(smallest, (1, task.prompt_tokens), generator=generator)
    for _ in range(task.repetitions):
        whole, without = {}, {}
        for wiring, engine in engines.items():
            whole[wiring] = _first_token_seconds(engine, ids_1T)
            alone = Engine(engine.decoder, engine.head_VD, rank, LocalReducer())
            without[wiring] = _slowest_rank(_first_token_seconds(alone, ids_1T))
        if rank.index == 0:
            rank.emit(_Repetition(whole, without))
    for wiring, engine in engines.items():
        passes = [_record(engine, rank, ids_1T) for _ in range(_RECORDED_PASSES)]
        rank.emit(_Recorded(wiring, _middle_pass(passes)))


def _first_token_seconds(engine: Engine, ids_1T: torch.Tensor) -> float:
    """From the prompt to the token that all ranks agree on."""
    cache = engine.new_cache(1, ids_1T.shape[1])
    dist.barrier()
    start = time.perf_counter()
    token_1 = engine.last_logits(ids_1T, cache).argmax(-1)
    if not isinstance(engine.reducer, LocalReducer):
        engine.agree(token_1)
    return time.perf_counter() - start


def _slowest_rank(seconds: float) -> float:
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item()


def _middle_pass(passes: list[list[Event]]) -> list[Event]:
    """The pass of median duration on rank 0, the same one on every rank."""
    seconds = torch.tensor([_duration(events) for events in passes], dtype=torch.float64)
    dist.broadcast(seconds, src=0)
    return passes[int(seconds.argsort()[len(passes) // 2])]


def _duration(events: list[Event]) -> float:
    return max(event.end for event in events) - min(event.start for event in events)


def _record(engine: Engine, rank: Rank, ids_1T: torch.Tensor) -> list[Event]:
    recorder = Recorder(rank.index)
    recorded = Engine(engine.decoder, engine.head_VD, rank, RecordingReducer(recorder))
    cache = recorded.new_cache(1, ids_1T.shape[1])
    dist.barrier()
    recorded.last_logits(ids_1T, cache, recorder.wrap)
    dist.barrier()  # every AllReduce is over, and so is its callback
    return recorder.events
