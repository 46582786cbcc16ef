"""A traced program gets its times: operator by operator of a device, sum by sum of a link."""

from typing import NamedTuple, Self

from krakenlm.model.shard import Shard
from krakenlm.plan.device import DeviceProfile, OperatorCosts
from krakenlm.plan.link import SumCost, SumCosts
from krakenlm.plan.program import Begin, Item, Operator, Program, Wait, Work
from krakenlm.plan.schedule import Await, Compute, Send, Step


class Timed(NamedTuple):
    """One rank's pass with its times.

    Attributes:
        steps: for ``krakenlm.plan.schedule``.
        parts: seconds of compute by part.
        for_sums: seconds of compute that sums take.
        communication: of all sums one after the other.
        measured: share of compute and communication that measured tables say.
    """

    steps: list[Step]
    parts: dict[str, float]
    for_sums: float
    communication: float
    measured: float


class Beside(NamedTuple):
    """What a pass takes beyond its operators; seconds.

    Attributes:
        slowdown: operators in a pass over the same alone.
        operator: of each operator.
        once: of the pass.
        launch: a device waits so long for each operator, where it would be done sooner.
    """

    slowdown: float = 1.0
    operator: float = 0.0
    once: float = 0.0
    launch: float = 0.0

    @classmethod
    def of(cls, device: DeviceProfile, *, captured: bool) -> Self:
        """What a profile says of passes that are replayed, or launched operator by operator."""
        costs = device.captured if captured else device.eager
        if costs is None:
            return cls(launch=0.0 if captured else device.launch_us.value * 1e-6)
        return cls(
            costs.operators_slowdown.value,
            costs.operator_us.value * 1e-6,
            costs.pass_us.value * 1e-6,
        )


class Timer:
    """Turns programs into steps that take time.

    Args:
        operators: of the device.
        sums: of the link.
        beside: what passes take beyond both.
    """

    def __init__(self, operators: OperatorCosts, sums: SumCosts, beside: Beside) -> None:
        self._operators = operators
        self._sums = sums
        self._beside = beside
        # Layers that are alike share their operators, which are kept here so that an id stays one.
        self._known: dict[int, tuple[tuple[Operator, ...], _Compute]] = {}

    def steps(self, shard: Shard, program: Program, place_of: dict[int, int]) -> Timed:
        """Of one rank, among those that are played."""
        steps: list[Step] = []
        parts: dict[str, float] = {}
        begun: dict[int, SumCost] = {}
        for_sums = communication = measured = everything = copied = 0.0
        if self._beside.once:
            steps.append(Compute(self._beside.once))
            parts["other"] = everything = measured = self._beside.once
        for item in program.items:
            if isinstance(item, Work):
                compute = self.compute(item.operators)
                for name, seconds in compute.parts.items():
                    hidden = name == "gemm" and item.overlapped
                    place = "overlapped_gemm" if hidden else name
                    parts[place] = parts.get(place, 0.0) + seconds
                name = f"{item.name} {item.layer + 1}" if item.layer is not None else ""
                steps.append(Compute(compute.seconds, name))
                measured, everything = measured + compute.measured, everything + compute.seconds
                copied = compute.copied
                continue
            if isinstance(item, Begin):
                cost = self._cost(shard, item)
                # Putting the message together is one of the operators already.
                cost = begun[item.number] = cost._replace(begin=max(cost.begin - copied, 0.0))
                copied = 0.0
                communication += cost.alone
                measured += cost.alone * cost.from_table
                everything += cost.alone
            cost = begun[item.number]
            members = tuple(sorted({place_of[r] for r in _members(shard, item)}))
            _add(steps, item, cost, members)
            for_sums += cost.begin if isinstance(item, Begin) else cost.wait
        share = measured / everything if everything else 0.0
        return Timed(steps, parts, for_sums, communication, share)

    def compute(self, operators: tuple[Operator, ...]) -> "_Compute":
        """Seconds of some operators in a row."""
        known = self._known.get(id(operators))
        if known is None:
            known = self._known[id(operators)] = operators, self._compute(operators)
        return known[1]

    def _compute(self, operators: tuple[Operator, ...]) -> "_Compute":
        beside = self._beside
        parts: dict[str, float] = {}
        measured = copied = 0.0
        for operator in operators:
            alone, from_table = self._operators(operator)
            seconds = alone * beside.slowdown + beside.operator
            is_message = operator.part == "message"
            name = "other" if is_message else operator.part
            parts[name] = parts.get(name, 0.0) + seconds
            measured += seconds * from_table
            copied += seconds * is_message
        idle = len(operators) * beside.launch - sum(parts.values())
        if idle > 0.0:  # the host cannot launch as fast as the device would be done
            parts["other"] = parts.get("other", 0.0) + idle
        return _Compute(sum(parts.values()), parts, measured, copied)

    def _cost(self, shard: Shard, begin: Begin) -> SumCost:
        ranks = len(_ranks(shard, begin))
        # Gathering takes as long as summing all that is gathered, as on an emulated link.
        return self._sums(begin.nbytes * (ranks if begin.gathers else 1), ranks)


class _Compute(NamedTuple):
    """Seconds of operators: all, by part, of these from measured tables, and for a message."""

    seconds: float
    parts: dict[str, float]
    measured: float
    copied: float


def _add(steps: list[Step], item: Begin | Wait, cost: SumCost, members: tuple[int, ...]) -> None:
    if isinstance(item, Begin):
        if cost.begin:
            steps.append(Compute(cost.begin))
        steps.append(Send(item.number, members, cost.wire, cost.behind))
        return
    adding = [Compute(cost.wait)] if cost.wait else []
    awaiting = [Await(item.number)]
    steps += [*adding, *awaiting] if cost.held_back else [*awaiting, *adding]


def _members(shard: Shard, item: Item) -> range:
    return _ranks(shard, item) if isinstance(item, Begin) else range(0)


def _ranks(shard: Shard, begin: Begin) -> range:
    groups = {"streams": shard.outer_ranks, "parts": shard.inner_ranks}
    return groups.get(begin.group, range(shard.ranks))
