"""How long ranks take to sum over a link, by the kernel or library that does it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from krakenlm.errors import ConfigError, KrakenError
from krakenlm.plan.constants import (
    SCHEMA_VERSION,
    Constant,
    Table,
    check_positive,
    check_rows,
    names,
    read_committed,
    unknown,
)
from krakenlm.plan.interpolation import Series
from krakenlm.transport.links import Link

FASTEST = "fastest"
"""Instead of a kernel's name: for each message the one that is quickest."""
BY_HAND = ", or ALPHA,BETA (microseconds, Gbit/s), or gbps=RATE,latency_us=LATENCY"

Algorithm = Literal["ring", "exchange", "one-shot", "multimem"]


class _Shape(NamedTuple):
    """Of an AllReduce: steps one after the other, and messages' worth of bytes a rank receives."""

    steps: float
    volume: float


def shape_of(algorithm: Algorithm, ranks: int) -> _Shape:
    """Of one AllReduce over so many ranks."""
    if algorithm == "one-shot":  # every rank reads all the others'
        return _Shape(1, ranks - 1)
    if algorithm == "multimem":  # the switch adds up
        return _Shape(1, 1)
    if algorithm == "exchange" and ranks == 2:  # whole messages, as ``transport.links`` has it
        return _Shape(1, 1)
    return _Shape(2 * (ranks - 1), 2 * (ranks - 1) / ranks)


class SumCost(NamedTuple):
    """Seconds of one AllReduce.

    Attributes:
        wire: that it keeps the link busy.
        behind: until the sum is there, after that.
        begin: of compute, where it is begun.
        wait: of compute, where it is awaited.
        from_table: measured points are near.
        held_back: what is computed where it is awaited needs no waiting for.
    """

    wire: float
    behind: float
    begin: float
    wait: float
    from_table: bool
    held_back: bool = False

    @property
    def alone(self) -> float:
        """Begun and awaited with nothing in between."""
        return self.begin + self.wire + self.behind + self.wait


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One way to sum over a link.

    Attributes:
        algorithm: ring passes 2 (R - 1) / R of a message in 2 (R - 1) steps; exchange does too, but
            two ranks exchange whole messages in one step; in one-shot every rank reads all others';
            with multimem the switch adds up.
        base_us: of any message.
        step_us: of each step.
        gb_per_second: at which a rank receives.
        begin_us: of compute where a sum is begun, on CPUs.
        begin_ns_per_byte: likewise.
        wait_us: of compute where it is awaited, on CPUs.
        wait_ns_per_byte: likewise.
        table: rows of bytes, ranks and microseconds.
    """

    algorithm: Algorithm
    base_us: Constant
    step_us: Constant
    gb_per_second: Constant
    begin_us: Constant | None = None
    begin_ns_per_byte: Constant | None = None
    wait_us: Constant | None = None
    wait_ns_per_byte: Constant | None = None
    table: Table | None = None

    def __post_init__(self) -> None:
        constants = {k: v for k, v in vars(self).items() if isinstance(v, Constant)}
        check_positive({"gb_per_second": constants.pop("gb_per_second")})
        check_positive(constants, may_be_zero=True)
        if self.table is not None:
            check_rows(self.table, 3, "table")

    def cost(
        self,
        nbytes: int,
        ranks: int,
        *,
        on_cpu: bool,
        pipelined: bool,
        held_back: bool = False,
    ) -> SumCost:
        """Of summing so many bytes over so many ranks."""
        wire, latency = self._formula(nbytes, ranks)
        from_table = False
        series = self._nearest(ranks)
        if series is not None and nbytes > 0:
            measured_ranks, points = series
            estimate = points.correct(nbytes, wire + latency)
            factor = estimate.seconds / (wire + latency)
            wire, latency = wire * factor, latency * factor
            from_table = estimate.from_table and measured_ranks == ranks
        begin = wait = 0.0
        if on_cpu:
            begin = _linear(self.begin_us, self.begin_ns_per_byte, nbytes)
            wait = _linear(self.wait_us, self.wait_ns_per_byte, nbytes)
        behind = latency if pipelined else 0.0
        return SumCost(wire + latency - behind, behind, begin, wait, from_table, held_back)

    def _formula(self, nbytes: float, ranks: int) -> tuple[float, float]:
        steps, volume = shape_of(self.algorithm, ranks)
        latency = (self.base_us.value + steps * self.step_us.value) * 1e-6
        return volume * nbytes / (self.gb_per_second.value * 1e9), latency

    def _nearest(self, ranks: int) -> tuple[int, Series] | None:
        """The series of the number of ranks that is nearest, by ratio."""
        if not self._series:
            return None
        nearest = min(self._series, key=lambda r: (max(r / ranks, ranks / r), r))
        return nearest, self._series[nearest]

    @cached_property
    def _series(self) -> dict[int, Series]:
        points: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        for nbytes, ranks, us in self.table.rows_us if self.table else ():
            points[int(ranks)].append((nbytes, us * 1e-6 / sum(self._formula(nbytes, int(ranks)))))
        return {ranks: Series(series) for ranks, series in points.items()}


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """What is between the devices.

    Attributes:
        kind: tells these files from those of devices.
        schema_version: of this layout.
        name: as ``--link`` takes it.
        title: for people.
        pipelined: while one message is in flight the next one may be sent.
        usual_kernel: where none is named.
        kernels: ways to sum, by name.
        held_back: the link is emulated: messages are there at once, and are added up before the
            time at which they would be.
    """

    kind: Literal["link"]
    schema_version: int
    name: str
    title: str
    pipelined: bool
    usual_kernel: str
    kernels: dict[str, Kernel]
    held_back: bool = False

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ConfigError(
                f"schema_version={self.schema_version}: this krakenlm reads {SCHEMA_VERSION}"
            )
        if self.usual_kernel not in self.kernels:
            raise ConfigError(f"usual_kernel={self.usual_kernel!r}: not one of the kernels")

    @classmethod
    def named(cls, text: str) -> "LinkProfile":
        """A committed profile, or one by hand.

        Raises:
            KrakenError: there is none of that name, or numbers that no link has.
        """
        if text in names("links"):
            return read_committed(cls, "links", text)
        if "=" in text:
            link = Link.parse(text)
            assert link is not None
            return by_hand(link)
        try:
            alpha, beta = (float(part) for part in text.split(","))
        except ValueError:
            raise unknown("--link", text, names("links"), BY_HAND) from None
        return by_hand(Link(gbps=beta, latency_us=alpha))

    def sums(self, kernel: str | None, *, on_cpu: bool) -> "SumCosts":
        """Times of sums.

        Raises:
            KrakenError: the link has no such kernel.
        """
        known = [*self.kernels, FASTEST]
        if kernel is not None and kernel not in known:
            raise unknown("--allreduce", kernel, known, f" for the link {self.name}")
        chosen = self.usual_kernel if kernel is None else kernel
        kernels = list(self.kernels.values()) if chosen == FASTEST else [self.kernels[chosen]]
        return SumCosts(kernels, on_cpu=on_cpu, pipelined=self.pipelined, held_back=self.held_back)


class SumCosts:
    """Times of sums over one link, by one kernel or the fastest of several."""

    def __init__(
        self,
        kernels: Sequence[Kernel],
        *,
        on_cpu: bool,
        pipelined: bool,
        held_back: bool = False,
    ) -> None:
        self._kernels = kernels
        self._how = {"on_cpu": on_cpu, "pipelined": pipelined, "held_back": held_back}
        self._known: dict[tuple[int, int], SumCost] = {}

    def __call__(self, nbytes: int, ranks: int) -> SumCost:
        """Of so many bytes over so many ranks."""
        key = nbytes, ranks
        if key not in self._known:
            costs = [kernel.cost(nbytes, ranks, **self._how) for kernel in self._kernels]
            self._known[key] = min(costs, key=lambda cost: cost.alone)
        return self._known[key]


def by_hand(link: Link) -> LinkProfile:
    """The profile of an emulated link, as ``krakenlm.transport.links`` models it."""
    source = "given by hand"

    def given(value: float) -> Constant:
        return Constant(value=value, basis="assumed", source=source)

    kernel = Kernel(
        algorithm="exchange",
        base_us=given(0.0),
        step_us=given(link.latency_us),
        gb_per_second=given(link.gbps / 8),
    )
    return LinkProfile(
        kind="link",
        schema_version=SCHEMA_VERSION,
        name=str(link),
        title=f"{link.gbps:g} Gbit/s, {link.latency_us:g} us",
        pipelined=True,
        usual_kernel="by-hand",
        kernels={"by-hand": kernel},
    )


def emulated(link: Link, real: LinkProfile) -> LinkProfile:
    """The profile of an emulated link whose messages a real one carries.

    Args:
        link: what is emulated.
        real: what is there; its usual kernel takes compute time where sums are begun and awaited.
    """
    profile, carrier = by_hand(link), real.kernels[real.usual_kernel]
    kernel = replace(
        profile.kernels[profile.usual_kernel],
        begin_us=carrier.begin_us,
        begin_ns_per_byte=carrier.begin_ns_per_byte,
        wait_us=carrier.wait_us,
        wait_ns_per_byte=carrier.wait_ns_per_byte,
    )
    return replace(
        profile,
        title=f"{profile.title}, emulated",
        kernels={profile.usual_kernel: kernel},
        held_back=True,
    )


def _linear(fixed: Constant | None, ns_per_byte: Constant | None, nbytes: int) -> float:
    seconds = 0.0 if fixed is None else fixed.value * 1e-6
    return seconds if ns_per_byte is None else seconds + ns_per_byte.value * nbytes * 1e-9


def check_link(ranks: int, link: str | None) -> None:
    """Refuse a link where there is nobody to talk to.

    Raises:
        KrakenError: one device and a link.
    """
    if link is not None and ranks == 1:
        raise KrakenError(f"--link {link}: one device has no link: use --devices 2 or more")
