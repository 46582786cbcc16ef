"""``krakenlm bench latency``: first token and every token after, several models on the same ranks.

All models live on all ranks at once and take turns, round by round (``interleaved``), so that a
drifting machine stays fair. Of a size the weights are random: they do not change how long a product
takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from krakenlm.bench.breakdown import measure_breakdown
from krakenlm.bench.models import Contender
from krakenlm.bench.ranks import dtype_on, gathered, gpu_name, peak_rss_bytes
from krakenlm.bench.results import REAL_LINK, LatencyReport, ModelLatency
from krakenlm.bench.runner import Runner, Timing, interleaved
from krakenlm.bench.summary import Facts, summarise
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.requests import room_for_answer
from krakenlm.engine.trace import Event
from krakenlm.environment import Environment, cores_here
from krakenlm.errors import KrakenError, trying
from krakenlm.ranks.devices import DeviceType, check_device, check_dtype, check_threads, name_of
from krakenlm.ranks.failures import REPORT
from krakenlm.ranks.launch import Rank, launch
from krakenlm.ranks.namespaces import Namespace
from krakenlm.ranks.placement import Placement, check_placement
from krakenlm.transport.connect import Transport
from krakenlm.transport.links import LinkModel

Timelines = dict[str, list[Event]]
_SMALLER = "if memory is short, take a smaller --size or fewer --wirings at once; else " + REPORT


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the models are run.

    Attributes:
        devices: ranks.
        input_len: tokens of each prompt.
        output_len: tokens to generate; 1 is the first token only.
        batch_size: prompts at once.
        iterations: rounds that count, 2 or more.
        warm_up: rounds before them.
        dtype: ``auto`` is bfloat16 where the device has it.
        device: ``auto``, ``cpu`` or ``cuda``.
        link: emulate this link; None uses what is there.
        emulate_peers: run rank 0's part alone; its peers are never late.
        graph_prefill: replay captured passes for prompts as well.
        transport: what carries messages.
        threads: compute threads of a rank; None is one for each of its cores.
        placement: units of each group of ranks, of Kraken models.
        tensor_parallel: ranks that share each Kraken sub-layer.
        record: also record the events of one prefill of each model.
        breakdown: also measure what a prefill consists of.
        sums_alone: also measure the sums of a prefill without compute, which takes long on a slow
            link; what is hidden is known only with that.
        places: network namespaces for the ranks to live in (see ``krakenlm.ranks.namespaces``).
    """

    devices: int = 2
    input_len: int = 512
    output_len: int = 16
    batch_size: int = 1
    iterations: int = 15
    warm_up: int = 3
    dtype: str = "auto"
    device: DeviceType = "auto"
    link: LinkModel | None = None
    emulate_peers: bool = False
    graph_prefill: bool = False
    transport: Transport = "auto"
    threads: int | None = None
    placement: Placement = None
    tensor_parallel: int = 1
    record: bool = False
    breakdown: bool = False
    sums_alone: bool = True
    places: tuple[Namespace, ...] | None = None

    @property
    def rounds(self) -> int:
        """How often ``measure`` calls ``on_round``."""
        return self.warm_up + self.iterations

    def options(self, contender: Contender) -> EngineOptions:
        """How one model is spread out; what only Kraken has is left out for the others."""
        options = EngineOptions(
            transport=self.transport,
            link=self.link,
            emulated_ranks=self.devices if self.emulate_peers else None,
            prefill_chunks=contender.prefill_chunks,
            graph_prefill=self.graph_prefill,
        )
        if not contender.config.traits.depends_on_degree:
            return options
        return replace(options, placement=self.placement, tensor_parallel=self.tensor_parallel)


class Measured(NamedTuple):
    """A report, and the events of a recorded prefill by the models' names."""

    report: LatencyReport
    timelines: Timelines


def measure(
    contenders: Sequence[Contender],
    setup: Setup,
    *,
    title: str,
    command: Sequence[str] = (),
    size: str | None = None,
    model: Path | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> Measured | None:
    """Measure several models against each other.

    Args:
        contenders: the models, in the order they take turns.
        setup: how they are run.
        title: what the report is about.
        command: what was typed, for the report.
        size: the standard shape's name, for the report.
        model: or the folder of the weights.
        on_round: called after every round, warm-up included.

    Returns:
        What was measured; None on all but rank 0 under torchrun.

    Raises:
        KrakenError: numbers that do not fit the models or one another.
    """
    check(contenders, setup)
    cores = len(cores_here())  # under torchrun a rank keeps to its share of them from here on
    heard = _Heard(on_round, last_model=len(contenders) - 1)
    launch(
        _measure_on_rank,
        [tuple(contenders), setup],
        devices=1 if setup.emulate_peers else setup.devices,
        on_message=heard,
        device_type=setup.device,
        threads=setup.threads,
        places=setup.places,
    )
    if heard.start is None:
        return None
    results = _results(contenders, setup, heard, heard.start.facts)
    report = LatencyReport(
        title=title,
        command=tuple(command) or None,
        size=size,
        model=None if model is None else str(model),
        environment=Environment.here(cores=cores, gpu=heard.start.gpu),
        results=results,
        **_conditions(setup, heard.start.dtype, heard.end),
    )
    names = [result.name for result in results]
    return Measured(report, dict(zip(names, heard.end.timelines, strict=setup.record)))


def check(contenders: Sequence[Contender], setup: Setup) -> None:
    """Refuse what cannot be measured, before anything is started.

    Raises:
        KrakenError: numbers that do not fit the models or one another.
    """
    for option, value, least in (
        ("--devices", setup.devices, 1),
        ("--input-len", setup.input_len, 1),
        ("--output-len", setup.output_len, 1),
        ("--batch-size", setup.batch_size, 1),
        ("--num-iters", setup.iterations, 2),  # a measurement has a spread
        ("--num-iters-warmup", setup.warm_up, 0),
    ):
        if value < least:
            raise KrakenError(f"{option} {value}: needs {least} or more")
    check_dtype(setup.dtype)
    check_device(setup.device)
    check_threads(setup.threads)
    if setup.link is not None and setup.devices == 1:
        raise KrakenError(f"--link {setup.link}: one device has no link: use --devices 2 or more")
    for contender in contenders:
        config, options = contender.config, setup.options(contender)
        check_placement(
            config, setup.devices, options.placement, tensor_parallel=options.tensor_parallel
        )
        if setup.output_len > room_for_answer(config, setup.input_len):
            raise KrakenError(
                f"--input-len {setup.input_len} and --output-len {setup.output_len}: the context "
                f"of this model holds {config.max_position_embeddings} tokens: shorten one of them"
            )


class _Start(NamedTuple):
    """What rank 0 says before the first round."""

    dtype: str
    gpu: str
    facts: list[Facts]


class _End(NamedTuple):
    """What rank 0 says after the last round; lists hold an entry a model, if asked for."""

    transport: str
    takes: str
    peak_rss_bytes: tuple[int, ...]
    timelines: list[list[Event]]
    breakdowns: list[dict[str, float]]


class _Heard:
    """Rank 0's messages; nothing, where this process is another rank."""

    def __init__(self, on_round: Callable[[], None], last_model: int) -> None:
        self._on_round = on_round
        self._last_model = last_model
        self.start: _Start | None = None
        self.timings: list[Timing] = []
        self.end = _End("", "", (), [], [])

    def __call__(self, message: _Start | Timing | _End) -> None:
        if isinstance(message, _Start):
            self.start = message
        elif isinstance(message, _End):
            self.end = message
        else:
            self.timings.append(message)
            if message.model == self._last_model:
                self._on_round()


def _conditions(setup: Setup, dtype: str, end: _End) -> dict[str, Any]:
    """How the models were run, as fields of a report."""
    return {
        "devices": setup.devices,
        "batch_size": setup.batch_size,
        "input_len": setup.input_len,
        "output_len": setup.output_len,
        "dtype": dtype,
        "iterations": setup.iterations,
        "warm_up": setup.warm_up,
        "link": REAL_LINK if setup.link is None else f"emulated: {setup.link}",
        "transport": end.transport,
        "emulation": _emulation(setup, end.takes),
        "graph_prefill": setup.graph_prefill,
        "placement": _in_words(setup.placement),
        "tensor_parallel": setup.tensor_parallel,
        "peak_rss_bytes": end.peak_rss_bytes,
    }


def _results(
    contenders: Sequence[Contender], setup: Setup, heard: _Heard, facts: Sequence[Facts]
) -> tuple[ModelLatency, ...]:
    counted = heard.timings[setup.warm_up * len(contenders) :]
    results = summarise(contenders, facts, counted, setup.output_len)
    if not setup.breakdown:
        return results
    return tuple(
        replace(result, breakdown_ms={part: 1000 * s for part, s in seconds.items()})
        for result, seconds in zip(results, heard.end.breakdowns, strict=True)
    )


def _measure_on_rank(rank: Rank, contenders: Sequence[Contender], setup: Setup) -> None:
    """Every rank does the same; rank 0 alone speaks, since others may be out of hearing."""
    if setup.record and rank.device.type == "cuda":
        raise KrakenError("--trace: only CPU ranks are recorded: leave it out or add --device cpu")
    torch.manual_seed(rank.index)
    emit = rank.emit if rank.index == 0 else lambda _: None
    dtype = dtype_on(rank.device, setup.dtype)
    with trying("making the models", _SMALLER):
        runners = _make_runners(rank, contenders, setup, dtype)
    facts = [
        Facts(len(runner.messages), runner.message_bytes, _units(rank, runner.engine))
        for runner in runners
    ]
    emit(_Start(name_of(dtype), gpu_name(rank.device), facts))
    with trying("measuring", _SMALLER):
        for timing in interleaved(runners, setup.rounds):
            emit(timing)
        timelines = [runner.record() for runner in runners] if setup.record else []
        breakdowns = [measure_breakdown(runner) for runner in runners] if setup.breakdown else []
    carriers = dict.fromkeys(runner.engine.connections.transport for runner in runners)
    peaks = tuple(gathered(rank, peak_rss_bytes()))
    takes = dict.fromkeys(runner.engine.connections.takes for runner in runners)
    said = " and ".join(filter(None, takes))
    emit(_End(" and ".join(carriers), said, peaks, timelines, breakdowns))


def _units(rank: Rank, engine: Engine) -> tuple[int, ...]:
    """Held by each rank, those that are only emulated among them."""
    options = engine.options
    if options.emulated_ranks is None:
        return tuple(gathered(rank, engine.shard.count))
    shards = options.shards(engine.config, options.emulated_ranks)
    return tuple(shard.count for shard in shards)


def _make_runners(
    rank: Rank, contenders: Sequence[Contender], setup: Setup, dtype: torch.dtype
) -> list[Runner]:
    """One a contender; those that differ in chunks alone share weights and connections."""
    generator = torch.Generator().manual_seed(0)
    smallest = min(contender.config.vocab_size for contender in contenders)
    shape = (setup.batch_size, setup.input_len)
    prompts: list[list[int]] = torch.randint(smallest, shape, generator=generator).tolist()
    engines: dict[str, Engine] = {}
    runners = []
    for index, contender in enumerate(contenders):
        options = setup.options(contender)
        engine = engines.get(contender.label)
        if engine is None:
            engine = _engine(contender, rank, dtype, options)
            engines[contender.label] = engine
        else:
            engine = engine.with_connections(engine.connections)
            engine.options = options
        runners.append(
            Runner(index, engine, prompts, setup.output_len, sums_alone=setup.sums_alone)
        )
    return runners


def _engine(contender: Contender, rank: Rank, dtype: torch.dtype, options: EngineOptions) -> Engine:
    if contender.model is None:
        return Engine.random(contender.config, rank, dtype, options)
    return Engine.load(contender.model, rank, dtype, options, config=contender.config)


def _emulation(setup: Setup, takes: str) -> str | None:
    """What was not there of the ranks, and what stood for it; None where all were."""
    if not setup.emulate_peers:
        return None
    ranks = f"emulated: one rank of {setup.devices} alone"
    return f"{ranks}; {takes}" if takes else ranks


def _in_words(placement: Placement) -> str | None:
    if placement is None or placement == "auto":
        return placement
    return ",".join(map(str, placement))
