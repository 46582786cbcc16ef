"""The time to the first token and to each after it, of one model on some devices.

Each rank's program is traced, timed operator by operator against the device's profile and sum by
sum against the link's, and played. Ranks whose programs are equal are played as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from krakenlm.bench.models import Contender
from krakenlm.bench.results import PART_NAMES
from krakenlm.config import ModelConfig, count_parameters
from krakenlm.engine.requests import room_for_answer
from krakenlm.engine.trace import SUM, WAIT, Event
from krakenlm.errors import KrakenError
from krakenlm.model.shard import Shard, split
from krakenlm.plan.device import DTYPES, DeviceProfile
from krakenlm.plan.link import LinkProfile
from krakenlm.plan.memory import Memory, Room, memory_of, room
from krakenlm.plan.schedule import Contention, Timeline, play, total
from krakenlm.plan.timing import Beside, Timed, Timer
from krakenlm.plan.trace import Pass, likeness, trace

_TORCH = {name: getattr(torch, name) for name in DTYPES}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What models are planned for.

    Attributes:
        device: each of them.
        link: between them.
        kernel: how sums are made; None is the link's usual way.
        dtype: of weights, cache and messages.
        batch_size: prompts at once.
        output_len: tokens generated for each; 1 is the first token only.
        tensor_parallel: devices that share each Kraken sub-layer.
        placement: units of each group of ranks; None is as even as possible.
        graph_prefill: prompts run as a captured graph as well, not operator by operator.
    """

    device: DeviceProfile
    link: LinkProfile
    kernel: str | None = None
    dtype: str = "float16"
    batch_size: int = 1
    output_len: int = 1
    tensor_parallel: int = 1
    placement: tuple[int, ...] | None = None
    graph_prefill: bool = False

    def __post_init__(self) -> None:
        for option, value in (
            ("--batch-size", self.batch_size),
            ("--output-len", self.output_len),
        ):
            if value < 1:
                raise KrakenError(f"{option} {value}: needs 1 or more")
        if self.dtype not in DTYPES:
            raise KrakenError(f"--dtype {self.dtype}: choose one of {', '.join(DTYPES)}")


class PlannedPass(NamedTuple):
    """One pass, played; seconds.

    Attributes:
        seconds: until its token is chosen, on the slowest rank.
        exposed: waiting for sums, and computing for them, on the rank with most to compute.
        compute: without communication, on that rank.
        communication: all sums one after the other, without compute.
        parts: of that rank, by name of ``bench.results.PART_NAMES``; they add up to
            ``seconds``.
        measured: share of its compute and communication that measured tables say.
        sums: AllReduces.
        message_bytes: of the largest.
        buffers: most bytes held at once, on the rank that holds most.
        timelines: of each rank that was played.
    """

    seconds: float
    exposed: float
    compute: float
    communication: float
    parts: dict[str, float]
    measured: float
    sums: int
    message_bytes: int
    buffers: int
    timelines: list[Timeline]

    def events(self) -> list[Event]:
        """For pictures and traces of recorded passes."""
        found = []
        for rank, timeline in enumerate(self.timelines):
            for name, lane, start, end in timeline.spans:
                if lane == "wire":
                    found.append(Event(SUM, rank, "communication", start, end))
                else:
                    found.append(
                        Event(WAIT if lane == "wait" else name, rank, "compute", start, end)
                    )
        return found


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One model on some devices, for one length of prompt.

    Attributes:
        label: what tells the model from others.
        config: its shape.
        devices: how many.
        input_len: tokens of each prompt.
        prefill: the prompt's pass.
        decode: that of a token in the middle of the answer; None where one token is all.
        memory: of the device that holds most.
        fits: it has that much.
        room: what would fit.
        variant: the rule that Kraken's sub-layers were derived by.
        prefill_chunks: parts of the prompt.
    """

    label: str
    config: ModelConfig
    devices: int
    input_len: int
    prefill: PlannedPass
    decode: PlannedPass | None
    memory: Memory
    fits: bool
    room: Room
    variant: str | None = None
    prefill_chunks: int = 1

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return count_parameters(self.config)

    def latency(self, output_len: int) -> float:
        """Seconds until the last of so many tokens."""
        later = 0.0 if self.decode is None else self.decode.seconds
        return self.prefill.seconds + (output_len - 1) * later


def plan(contender: Contender, devices: int, input_len: int, setup: Setup) -> Planned:
    """Plan one model.

    Args:
        contender: the model.
        devices: how many share it.
        input_len: tokens of each prompt.
        setup: on what.

    Raises:
        KrakenError: numbers that do not fit the model or one another.
    """
    config = contender.config
    check_length(config, input_len, setup.output_len)
    shards = shards_of(config, devices, setup)
    prefill_pass = Pass(setup.batch_size, input_len, chunks=contender.prefill_chunks)
    prefill = plan_pass(shards, prefill_pass, setup)
    decode = None
    if setup.output_len > 1:
        middle = input_len + setup.output_len // 2
        decode = plan_pass(shards, Pass(setup.batch_size, middle - 1, decodes=True), setup)
    element = DTYPES[setup.dtype]
    positions = input_len + setup.output_len
    held = {
        shard: memory_of(
            shard,
            element,
            batch=setup.batch_size,
            positions=positions,
            buffers=max(prefill.buffers, decode.buffers if decode else 0),
        )
        for shard in (shards[rank] for rank in _kinds(shards)[0])
    }
    fullest = max(held, key=lambda shard: held[shard].total)
    usable = setup.device.usable_bytes
    return Planned(
        label=contender.label,
        config=config,
        devices=devices,
        input_len=input_len,
        prefill=prefill,
        decode=decode,
        memory=held[fullest],
        fits=held[fullest].total <= usable,
        room=room(
            fullest,
            held[fullest],
            usable,
            element,
            batch=setup.batch_size,
            tokens=input_len,
        ),
        variant=contender.variant,
        prefill_chunks=contender.prefill_chunks,
    )


def shards_of(config: ModelConfig, devices: int, setup: Setup) -> list[Shard]:
    """Each device's part; what only Kraken's sub-layers have is left out for other wirings."""
    if not config.traits.depends_on_degree or devices == 1:
        return split(config, devices)
    return split(config, devices, placement=setup.placement, tensor_parallel=setup.tensor_parallel)


def check_length(config: ModelConfig, input_len: int, output_len: int) -> None:
    """Refuse prompts that the engine would refuse.

    Raises:
        KrakenError: too long for the model's positions, or empty.
    """
    if input_len < 1:
        raise KrakenError(f"--input-len {input_len}: needs 1 or more")
    if output_len > room_for_answer(config, input_len):
        raise KrakenError(
            f"--input-len {input_len} with --output-len {output_len}: the model's context holds "
            f"{config.max_position_embeddings}: shorten one of them"
        )


def plan_pass(shards: Sequence[Shard], which: Pass, setup: Setup) -> PlannedPass:
    """Trace, time and play one pass on all ranks."""
    kinds, place_of = _kinds(shards)
    programs = [trace(shards[rank], which, _TORCH[setup.dtype]) for rank in kinds]
    device = setup.device
    captured = which.decodes or setup.graph_prefill
    sums = setup.link.sums(setup.kernel, on_cpu=device.processor == "cpu")
    beside = Beside.of(device, captured=captured)
    timed = [
        Timer(device.costs(setup.dtype, program.read_bytes), sums, beside).steps(
            shards[rank], program, place_of
        )
        for rank, program in zip(kinds, programs, strict=True)
    ]
    contention = Contention(
        device.compute_slowdown_beside_allreduce.value,
        device.allreduce_slowdown_beside_compute.value,
    )
    timelines = play([rank.steps for rank in timed], contention)
    # All end together, since all take part in the last exchange: the one with most to compute has
    # least to wait for, and what it waits for is what communication costs.
    busiest = max(range(len(timed)), key=lambda i: total(timed[i].steps) - timed[i].for_sums)
    rank, timeline = timed[busiest], timelines[busiest]
    bytes_sent = [begin.nbytes for begin in programs[0].sums]
    return PlannedPass(
        seconds=max(t.seconds for t in timelines),
        exposed=timeline.exposed + rank.for_sums,
        compute=total(rank.steps) - rank.for_sums,
        communication=rank.communication,
        parts=_parts(rank, timeline),
        measured=rank.measured,
        sums=len(bytes_sent),
        message_bytes=max(bytes_sent, default=0),
        buffers=max(program.peak_bytes for program in programs),
        timelines=timelines,
    )


def _kinds(shards: Sequence[Shard]) -> tuple[list[int], dict[int, int]]:
    """Which ranks to play, and for each rank the place of the one that stands for it.

    Ranks that differ in a row of the head are taken to be alike, and the one with more stands for
    them. Where all sum with all, one rank stands for those alike; else each for itself, unless all
    are alike.
    """
    alike: dict[Any, list[int]] = {}
    for rank, shard in enumerate(shards):
        alike.setdefault(likeness(shard, head=False), []).append(rank)
    if len(alike) > 1 and shards[0].tensor_parallel > 1:
        return list(range(len(shards))), {rank: rank for rank in range(len(shards))}
    kinds = [max(ranks, key=lambda r: len(shards[r].head_rows)) for ranks in alike.values()]
    return kinds, {r: place for place, ranks in enumerate(alike.values()) for r in ranks}


def _parts(rank: Timed, timeline: Timeline) -> dict[str, float]:
    """Seconds by part; what contention adds is shared out among what was computed."""
    alone = sum(rank.parts.values())
    beside = timeline.seconds - timeline.exposed - rank.for_sums
    stretch = beside / alone if alone else 1.0
    parts = {name: rank.parts.get(name, 0.0) * stretch for name in PART_NAMES}
    parts["allreduce"] = timeline.exposed + rank.for_sums
    return parts
