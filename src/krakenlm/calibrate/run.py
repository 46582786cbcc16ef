"""``krakenlm calibrate``: the ranks measure, and what they found becomes a profile."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from krakenlm.bench.ranks import dtype_on, gathered
from krakenlm.calibrate.budget import Budget, Elapsed
from krakenlm.calibrate.measurements import Machine, Measurements, machine_of, weight_room
from krakenlm.calibrate.operators import Prepared, Workbench, flops_per_second, time_points
from krakenlm.calibrate.passes import contender, time_passes
from krakenlm.calibrate.points import CPU, GPU, Extent
from krakenlm.calibrate.profiles import device_profile, link_profile
from krakenlm.calibrate.sums import time_sums
from krakenlm.errors import KrakenError, trying
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import LinkProfile, emulated
from krakenlm.ranks.cores import keep_freed_memory
from krakenlm.ranks.devices import DeviceType, check_device, check_dtype, check_threads, name_of
from krakenlm.ranks.failures import REPORT
from krakenlm.ranks.launch import Rank, launch
from krakenlm.ranks.namespaces import Namespace
from krakenlm.transport.connect import TRANSPORTS, Transport
from krakenlm.transport.links import Link

USUAL_SECONDS = 150.0
LEAST_SECONDS = 10.0
_OPERATORS, _SUMS, _NEARLY_ALL = 0.5, 0.2, 0.97
"""Of the time, the shares of these; passes get the rest."""
_ROUNDS = 8
"""Of the largest shapes there are to be as many."""
_READ = 1024, 1024
_SMALLER = "if memory is short, take fewer --devices; else " + REPORT


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a machine is calibrated.

    Attributes:
        devices: ranks, all of which work at once.
        dtype: ``auto`` is bfloat16 where the device has it.
        device: ``auto``, ``cpu`` or ``cuda``.
        link: the profile's link is this emulated one, carried by what is there; None is that.
        transport: what carries messages.
        threads: compute threads of a rank; None is one for each of its cores.
        seconds: that measuring may take.
        extent: shapes; None is what suits the device.
        places: network namespaces for the ranks to live in.
        link_alone: measure nothing but sums.
    """

    devices: int = 2
    dtype: str = "auto"
    device: DeviceType = "auto"
    link: Link | None = None
    transport: Transport = "auto"
    threads: int | None = None
    seconds: float = USUAL_SECONDS
    extent: Extent | None = None
    places: tuple[Namespace, ...] | None = None
    link_alone: bool = False

    def check(self) -> None:
        """Refuse what cannot be calibrated.

        Raises:
            KrakenError: names the option.
        """
        if self.devices < 1:
            raise KrakenError(f"--devices {self.devices}: needs 1 or more")
        if not LEAST_SECONDS <= self.seconds < float("inf") and self.extent is None:
            raise KrakenError(f"--time {self.seconds:g}: needs {LEAST_SECONDS:g} seconds or more")
        check_dtype(self.dtype)
        check_device(self.device)
        check_threads(self.threads)
        if self.transport not in TRANSPORTS:
            known = ", ".join(TRANSPORTS)
            raise KrakenError(f"--transport {self.transport}: choose one of {known}")
        if self.link is not None and self.devices == 1:
            raise KrakenError(
                f"--link {self.link}: one device has no link: use --devices 2 or more"
            )


class Calibrated(NamedTuple):
    """A machine's profile, and what it was made of.

    Attributes:
        device: each of its devices.
        link: between them; None where there is one alone.
        measured: what was measured.
    """

    device: DeviceProfile
    link: LinkProfile | None
    measured: Measurements


def calibrate(
    options: Options, on_progress: Callable[[Elapsed], None] = lambda _: None
) -> Calibrated | None:
    """Measure this machine.

    Returns:
        Its profile; None on all but rank 0 under torchrun.

    Raises:
        KrakenError: options that cannot work, or what a rank could not do.
    """
    measured = measure(options, on_progress)
    if measured is None:
        return None
    link = link_profile(measured)
    if link is not None and options.link is not None:
        link = emulated(options.link, link)
    return Calibrated(device_profile(measured), link, measured)


def calibrate_link(
    options: Options, on_progress: Callable[[Elapsed], None] = lambda _: None
) -> Measurements | None:
    """Measure the sums alone: see ``krakenlm.calibrate.profiles.over_link``."""
    if options.devices < 2:
        raise KrakenError(f"--devices {options.devices}: one device has no link: use 2 or more")
    return measure(dataclasses.replace(options, link_alone=True), on_progress)


def measure(options: Options, on_progress: Callable[[Elapsed], None]) -> Measurements | None:
    """What the ranks find; None on all but rank 0 under torchrun."""
    options.check()
    found: list[Measurements] = []

    def hear(message: Measurements | Elapsed) -> None:
        if isinstance(message, Elapsed):
            on_progress(message)
        else:
            found.append(message)

    launch(
        _measure_on_rank,
        [options],
        devices=options.devices,
        on_message=hear,
        device_type=options.device,
        threads=options.threads,
        places=options.places,
    )
    return found[0] if found else None


def _measure_on_rank(rank: Rank, options: Options) -> None:
    budget = Budget(rank, options.seconds)
    torch.manual_seed(rank.index)
    if rank.size > 1:
        keep_freed_memory()
    dtype = dtype_on(rank.device, options.dtype)
    machine = machine_of(rank)
    extent = options.extent or (CPU if rank.device.type == "cpu" else GPU)
    found = Measurements(machine=machine, dtype=name_of(dtype))
    with trying("measuring", _SMALLER):
        until = 0.0 if options.link_alone else _OPERATORS * budget.seconds
        if not options.link_alone:
            found = _operators(rank, dtype, extent, machine, found, budget, until)
        if rank.size > 1:
            until = max(until, budget.elapsed()) + _SUMS * budget.seconds
            if options.link_alone:
                until = _NEARLY_ALL * budget.seconds
            sums, beside, transport = time_sums(
                rank, dtype, options.transport, extent.messages, budget, until=until
            )
            found = dataclasses.replace(found, sums=tuple(sums), beside=beside, transport=transport)
        if not options.link_alone:
            found = _passes(rank, dtype, extent, options.transport, found, budget)
    if rank.index == 0:
        rank.emit(found)


def _operators(
    rank: Rank,
    dtype: torch.dtype,
    extent: Extent,
    machine: Machine,
    found: Measurements,
    budget: Budget,
    until: float,
) -> Measurements:
    """Operators, and how caches hold weights; only what fits into the time and the memory."""
    rate = flops_per_second(rank, dtype)
    room = min(gathered(rank, weight_room(machine)))
    extent = extent.within(until / _ROUNDS, rate, room, dtype.itemsize)
    bench = Workbench(rank.device, dtype)
    with torch.no_grad():
        prepared: list[Prepared] = []
        for point in extent.points():
            prepared.append(bench.prepare(point))
            budget.tell("operators")
        reads = [bench.reading(1, *_READ, mib << 20) for mib in extent.working_sets]
    seconds = time_points(rank, prepared, budget, until=0.9 * until, what="operators")
    read_seconds = time_points(rank, reads, budget, until=until, what="weights in caches")
    return dataclasses.replace(
        found,
        points=tuple((p.point, s) for p, s in zip(prepared, seconds, strict=True)),
        reads=tuple(
            (mib << 20, s) for mib, s in zip(extent.working_sets, read_seconds, strict=True)
        ),
    )


def _passes(
    rank: Rank,
    dtype: torch.dtype,
    extent: Extent,
    transport: Transport,
    found: Measurements,
    budget: Budget,
) -> Measurements:
    models = [contender(probe, rank.size, extent.vocabulary_size) for probe in extent.probes]
    tokens: Sequence[int] = [probe.tokens for probe in extent.probes]
    times = time_passes(
        rank, models, tokens, dtype, transport, budget, until=_NEARLY_ALL * budget.seconds
    )
    return dataclasses.replace(
        found,
        probes=tuple(zip(extent.probes, times, strict=True)),
        vocabulary_size=extent.vocabulary_size,
    )
