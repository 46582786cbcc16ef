"""``krakenlm bench allreduce``: the sums of this machine's transports, in nccl-tests' columns.

https://github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md: algorithm bandwidth is message size over
time; bus bandwidth multiplies it by 2 (R - 1) / R, which makes it comparable across ranks.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from krakenlm.bench.ranks import barrier, dtype_on, gpu_name, now
from krakenlm.bench.ranks import gathered as gathered_objects
from krakenlm.bench.results import REAL_LINK, link_in_words
from krakenlm.config import ModelConfig
from krakenlm.environment import Environment, cores_here
from krakenlm.errors import KrakenError, trying
from krakenlm.model.shard import Shard
from krakenlm.ranks.devices import DeviceType, check_device, check_dtype, name_of
from krakenlm.ranks.failures import REPORT
from krakenlm.ranks.launch import Rank, launch
from krakenlm.spread import Quantiles
from krakenlm.strict import read_report
from krakenlm.transport.collective import Collective, Group, ProcessGroupReducer
from krakenlm.transport.connect import TRANSPORTS, Transport, connect
from krakenlm.transport.links import Link

SCHEMA_VERSION = 2
_WARM_UP = 3
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is summed.

    Attributes:
        devices: ranks, 2 or more.
        dtype: of messages; process groups sum float32 as well.
        min_bytes: the smallest message.
        max_bytes: no message is larger; sizes double.
        transports: which, in this order.
        iterations: timed sums of each size.
        device: ``auto``, ``cpu`` or ``cuda``.
        link: emulate this link; None uses what is there.
        only_what_works: leave transports out that these ranks do not have, instead of refusing.
    """

    devices: int = 2
    dtype: str = "bfloat16"
    min_bytes: int = 1 << 10
    max_bytes: int = 4 << 20
    transports: tuple[Transport, ...] = TRANSPORTS[1:]
    iterations: int = 20
    device: DeviceType = "auto"
    link: Link | None = None
    only_what_works: bool = True

    def sizes(self) -> list[int]:
        """Message sizes in bytes."""
        sizes = [self.min_bytes]
        while sizes[-1] * 2 <= self.max_bytes:
            sizes.append(sizes[-1] * 2)
        return sizes


@dataclass(frozen=True, kw_only=True)
class Sum:
    """One transport at one size.

    Attributes:
        transport: what carried the messages.
        dtype: of messages.
        bytes: of one message.
        count: its elements.
        time_us: of one sum on the slowest rank.
        algbw_gb_per_s: size over median time, in 10^9 bytes a second.
        busbw_gb_per_s: the same times 2 (R - 1) / R.
        wrong: elements that differ from the sum of the gathered inputs by more than rounding.
    """

    transport: str
    dtype: str
    bytes: int
    count: int
    time_us: Quantiles
    algbw_gb_per_s: float
    busbw_gb_per_s: float
    wrong: int


@dataclass(frozen=True, kw_only=True)
class AllReduceReport:
    """All sums of a run.

    Attributes:
        kind: tells these files from others of the project.
        schema_version: of this layout.
        command: what was typed.
        devices: ranks.
        iterations: timed sums of each size.
        link: ``real``, or ``emulated: `` and the model's numbers.
        environment: where, and with what.
        results: an entry for each transport, type and size.
    """

    kind: Literal["allreduce"] = "allreduce"
    schema_version: int = SCHEMA_VERSION
    command: tuple[str, ...]
    devices: int
    iterations: int
    link: str
    environment: Environment
    results: tuple[Sum, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: Path) -> "AllReduceReport":
        """Read what ``to_json`` gave, also an earlier version's.

        Raises:
            KrakenError: no such file, another schema, or not a report.
        """
        return read_report(
            cls,
            path,
            "allreduce",
            SCHEMA_VERSION,
            what="a report of sums",
            advice="give the JSON of an earlier krakenlm bench allreduce, or measure again",
            again="measure again",
            current=_in_this_layout,
        )


def _in_this_layout(values: dict[str, Any]) -> dict[str, Any]:
    """Version 1 was the same without its kind."""
    if values["schema_version"] == 1:
        return {**values, "kind": "allreduce", "schema_version": SCHEMA_VERSION}
    return values


def parse_bytes(option: str, text: str) -> int:
    """Read ``1K`` or ``4M``: powers of 1024, as nccl-tests has them.

    Raises:
        KrakenError: anything else, or nought.
    """
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)B?", text.strip().upper())
    if match is None or not int(match[1]):
        raise KrakenError(f"{option} {text}: write a number of bytes, such as 512, 1K or 4M")
    return int(match[1]) * _UNITS[match[2]]


def parse_transports(text: str) -> tuple[Transport, ...]:
    """Read ``all`` or names with commas between.

    Raises:
        KrakenError: a name that does not exist.
    """
    real = TRANSPORTS[1:]
    if text == "all":
        return real
    for name in text.split(","):
        if name not in real:
            raise KrakenError(f"--transports {text}: choose all or some of {','.join(real)}")
    return tuple(dict.fromkeys(text.split(",")))  # type: ignore[arg-type]  # checked above


def measure_allreduce(
    sweep: Sweep,
    *,
    command: Sequence[str] = (),
    on_note: Callable[[str], None] = lambda _: None,
    on_sum: Callable[[], None] = lambda: None,
) -> AllReduceReport | None:
    """Time sums of all sizes over each transport.

    Args:
        sweep: what is summed.
        command: what was typed, for the report.
        on_note: told which transports are left out, and why.
        on_sum: called after every size.

    Returns:
        The report; None on all but rank 0 under torchrun.

    Raises:
        KrakenError: numbers that cannot work, a transport that is not there.
    """
    _check(sweep)
    cores = len(cores_here())  # under torchrun a rank keeps to its share of them from here on
    sums: list[Sum] = []
    gpus: list[str] = []

    def hear(message: Sum | _LeftOut | _Device) -> None:
        if isinstance(message, Sum):
            sums.append(message)
            on_sum()
        elif isinstance(message, _LeftOut):
            on_note(message.why)
        else:
            gpus.append(message.gpu)

    launch(
        _sum_on_rank,
        [sweep],
        devices=sweep.devices,
        on_message=hear,
        device_type=sweep.device,
    )
    if not gpus:
        return None
    return AllReduceReport(
        command=tuple(command),
        devices=sweep.devices,
        iterations=sweep.iterations,
        link=REAL_LINK if sweep.link is None else f"emulated: {sweep.link}",
        environment=Environment.here(cores=cores, gpu=gpus[0]),
        results=tuple(sums),
    )


def nccl_table(report: AllReduceReport) -> str:
    """The report as nccl-tests prints it, a block for each transport and type."""
    blocks: dict[tuple[str, str], list[Sum]] = {}
    for entry in report.results:
        blocks.setdefault((entry.transport, entry.dtype), []).append(entry)
    ranks = f"{report.devices} ranks, {report.environment}, {link_in_words(report.link)}"
    lines = []
    for (transport, dtype), entries in blocks.items():
        lines.append(f"# AllReduce over {transport}, {dtype}: {ranks}")
        lines += _HEADING
        lines += [
            f"{e.bytes:>12} {e.count:>12} {e.dtype:>9} {'sum':>7} {'-1':>6} "
            f"{e.time_us.median:>9.2f} {e.algbw_gb_per_s:>7.2f} {e.busbw_gb_per_s:>7.2f} "
            f"{e.wrong:>6}"
            for e in entries
        ]
        lines.append("")
    return "\n".join(lines)


_HEADING = (
    f"#{'out-of-place':>83}",
    f"#{'size':>11} {'count':>12} {'type':>9} {'redop':>7} {'root':>6} "
    f"{'time':>9} {'algbw':>7} {'busbw':>7} {'#wrong':>6}",
    f"#{'(B)':>11} {'(elements)':>12} {'':>9} {'':>7} {'':>6} "
    f"{'(us)':>9} {'(GB/s)':>7} {'(GB/s)':>7} {'':>6}",
)


class _LeftOut(NamedTuple):
    why: str


class _Device(NamedTuple):
    gpu: str


def _check(sweep: Sweep) -> None:
    for option, value, least in (
        ("--devices", sweep.devices, 2),
        ("--num-iters", sweep.iterations, 2),
    ):
        if value < least:
            raise KrakenError(f"{option} {value}: needs {least} or more")
    check_dtype(sweep.dtype)
    check_device(sweep.device)
    if sweep.max_bytes < sweep.min_bytes:
        raise KrakenError(
            f"--max-bytes {sweep.max_bytes}: is less than --min-bytes {sweep.min_bytes}"
        )


def _sum_on_rank(rank: Rank, sweep: Sweep) -> None:
    emit = rank.emit if rank.index == 0 else lambda _: None
    emit(_Device(gpu_name(rank.device)))
    dtype = dtype_on(rank.device, sweep.dtype)
    for transport in sweep.transports:
        # gloo sums bfloat16 slowly, which only a comparison shows.
        types = {dtype: None, **({torch.float32: None} if transport == "process-group" else {})}
        for each in types:
            try:
                collective = _connected(rank, transport, sweep.link)
            except KrakenError as error:
                if not sweep.only_what_works:
                    raise
                emit(_LeftOut(f"left out: {error}"))
                break
            for nbytes in sweep.sizes():
                try:
                    with trying(f"summing {nbytes} bytes over {transport}", REPORT):
                        emit(_time_sum(rank, collective, transport, each, nbytes, sweep.iterations))
                except KrakenError as error:  # on every rank, as it ran out of shared memory
                    if not sweep.only_what_works:
                        raise
                    emit(_LeftOut(f"left out from {nbytes} bytes on: {error}"))
                    break
            collective.close()


def _connected(rank: Rank, transport: Transport, link: Link | None) -> Collective:
    # Which model is divided makes no difference to a sum over all ranks.
    shard = Shard(config=ModelConfig(), first=rank.index, count=1, rank=rank.index, ranks=rank.size)
    connections = connect(rank, shard, transport)
    return (connections if link is None else connections.over(link, shard)).everyone


def _time_sum(
    rank: Rank,
    collective: Collective,
    transport: str,
    dtype: torch.dtype,
    nbytes: int,
    iterations: int,
) -> Sum:
    count = max(nbytes // dtype.itemsize, 1)
    generator = torch.Generator().manual_seed(rank.index)
    mine = torch.rand(count, generator=generator).mul_(2).sub_(1).to(rank.device, dtype)
    mine_1BTD = mine.view(1, 1, 1, count)
    wrong = _wrong(rank, mine, collective.begin(mine_1BTD).wait().flatten())
    seconds = []
    barrier(rank)
    for _ in range(_WARM_UP + iterations):
        start = now(rank)
        collective.begin(mine_1BTD).wait()
        seconds.append(now(rank) - start)
    of_ranks = gathered_objects(rank, (seconds[_WARM_UP:], wrong))
    slowest = [1e6 * max(values) for values in zip(*(s for s, _ in of_ranks), strict=True)]
    time_us = Quantiles.of(slowest)
    bandwidth = count * dtype.itemsize / time_us.median * 1e-3
    return Sum(
        transport=transport,
        dtype=name_of(dtype),
        bytes=count * dtype.itemsize,
        count=count,
        time_us=time_us,
        algbw_gb_per_s=bandwidth,
        busbw_gb_per_s=bandwidth * 2 * (rank.size - 1) / rank.size,
        wrong=sum(w for _, w in of_ranks),
    )


def _wrong(rank: Rank, mine: Tensor, total: Tensor) -> int:
    """Elements further from the sum of all inputs than rounding at every step can bring them."""
    group = ProcessGroupReducer(Group(rank.index, rank.size))
    inputs_RN = group.gather(mine.float()).double()
    allowed_N = inputs_RN.abs().sum(0) * rank.size * torch.finfo(mine.dtype).eps
    # Written so that a sum which is no number counts as wrong.
    return int((~((total.double() - inputs_RN.sum(0)).abs() <= allowed_N)).sum())
