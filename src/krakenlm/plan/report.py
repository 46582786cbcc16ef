"""What a plan found, as plain values, and which model it would choose."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from krakenlm.bench.models import Contender
from krakenlm.bench.results import BASELINE
from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.plan.candidates import Wish, alone, candidates
from krakenlm.plan.planner import Planned, PlannedPass, Setup, plan

SCHEMA_VERSION = 1
ALIKE = 1.04
"""Models whose times differ by less than this are not told apart; see ``docs/planner.md``."""
NOT_VALIDATED = "planned, not measured"


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Plans of several models on several numbers of devices.

    Attributes:
        title: what was planned.
        setup: on what.
        plans: by length of prompt, then by number of devices.
        left_out: models that there are none of, and why.
    """

    title: str
    setup: Setup
    plans: tuple[Planned, ...]
    left_out: tuple[str, ...] = ()

    @property
    def input_lens(self) -> list[int]:
        """The lengths, in order."""
        return list(dict.fromkeys(p.input_len for p in self.plans))

    def of_length(self, input_len: int) -> list[Planned]:
        """The plans of one length."""
        return [p for p in self.plans if p.input_len == input_len]

    def baseline(self, planned: Planned) -> Planned | None:
        """The standard model, in one chunk, on as many devices and as long a prompt."""
        for other in self.of_length(planned.input_len):
            if other.devices == planned.devices and other.config.wiring == BASELINE:
                return other
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        setup = self.setup
        return {
            "kind": "plan",
            "schema_version": SCHEMA_VERSION,
            "basis": NOT_VALIDATED,
            "title": self.title,
            "device": setup.device.name,
            "link": setup.link.name,
            "allreduce": setup.kernel or setup.link.usual_kernel,
            "dtype": setup.dtype,
            "batch_size": setup.batch_size,
            "output_len": setup.output_len,
            "tensor_parallel": setup.tensor_parallel,
            "graph_prefill": setup.graph_prefill,
            "results": [self._entry(p) for p in self.plans],
            "choices": [choose(self, n)._asdict() for n in self.input_lens],
            "left_out": list(self.left_out),
            "profiles": {
                "device": dataclasses.asdict(setup.device),
                "link": dataclasses.asdict(setup.link),
            },
        }

    def _entry(self, planned: Planned) -> dict[str, Any]:
        speedups = ratios(self, planned)
        return {
            "model": planned.label,
            "wiring": planned.config.wiring,
            "variant": planned.variant,
            "devices": planned.devices,
            "input_len": planned.input_len,
            "prefill_chunks": planned.prefill_chunks,
            "parameters": planned.parameters,
            "config": planned.config.to_dict(),
            "ttft_ms": 1e3 * planned.prefill.seconds,
            "ttft_speedup": speedups.ttft,
            "tpot_ms": None if planned.decode is None else 1e3 * planned.decode.seconds,
            "tpot_speedup": speedups.tpot,
            "latency_ms": 1e3 * planned.latency(self.setup.output_len),
            "prefill": _of_pass(planned.prefill),
            "decode": None if planned.decode is None else _of_pass(planned.decode),
            "memory_bytes": planned.memory._asdict(),
            "fits": planned.fits,
            "largest_context": planned.room.context,
            "largest_batch": planned.room.batch,
        }


def _of_pass(planned: PlannedPass) -> dict[str, Any]:
    return {
        "ms": 1e3 * planned.seconds,
        "exposed_ms": 1e3 * planned.exposed,
        "no_comm_ms": 1e3 * planned.compute,
        "communication_ms": 1e3 * planned.communication,
        "parts_ms": {name: 1e3 * seconds for name, seconds in planned.parts.items()},
        "allreduces": planned.sums,
        "message_bytes": planned.message_bytes,
        "share_from_tables": planned.measured,
    }


class Ratios(NamedTuple):
    """Times of the standard model over those of another; None where there is none."""

    ttft: float | None
    tpot: float | None


def ratios(report: PlanReport, planned: Planned) -> Ratios:
    """How much faster a model is than the standard one on as many devices."""
    base = report.baseline(planned)
    if base is None:
        return Ratios(None, None)
    ttft = base.prefill.seconds / planned.prefill.seconds
    if base.decode is None or planned.decode is None:
        return Ratios(ttft, None)
    return Ratios(ttft, base.decode.seconds / planned.decode.seconds)


def plan_all(
    shape: ModelConfig,
    wish: Wish,
    devices: Sequence[int],
    input_lens: Sequence[int],
    setup: Setup,
    *,
    title: str,
    strict: bool,
) -> PlanReport:
    """Plan a shape in all wirings, on one device and on several.

    Args:
        shape: as ``candidates.read_shape`` gives it.
        wish: which models.
        devices: how many, each.
        input_lens: tokens of a prompt, each.
        setup: on what.
        title: what is planned.
        strict: a wiring that has no model for a number of devices is an error; otherwise, as single
            models of it always are, it is left out, and the report says so.

    Raises:
        KrakenError: numbers that do not fit the model or one another, or nothing to plan.
    """
    left_out: list[str] = []
    plans: list[Planned] = []
    for input_len in input_lens:
        plans.append(plan(alone(shape), 1, input_len, setup))
        for count in (d for d in devices if d > 1):
            models, refused, missing = candidates(shape, wish, count)
            if missing and strict:
                raise KrakenError(missing[0])
            left_out += refused
            found, refused = _planned(models, count, input_len, setup, strict=strict)
            plans += found
            left_out += refused
    return PlanReport(
        title=title, setup=setup, plans=tuple(plans), left_out=tuple(dict.fromkeys(left_out))
    )


def _planned(
    models: Sequence[Contender], devices: int, input_len: int, setup: Setup, *, strict: bool
) -> tuple[list[Planned], list[str]]:
    """Plans, and why there are none of others; with ``strict`` each wiring must have one."""
    found: list[Planned] = []
    refused: dict[str, KrakenError] = {}
    for model in models:
        try:
            found.append(plan(model, devices, input_len, setup))
        except KrakenError as error:
            # A length that does not fit is the same for all models: that is for the user to mend.
            if str(error).startswith("--input-len"):
                raise
            refused[model.label] = error
    there = {planned.config.wiring for planned in found}
    for model in models:
        if strict and model.config.wiring not in there:
            raise refused[model.label]
    return found, [f"{label}: {error}" for label, error in refused.items()]


class Choice(NamedTuple):
    """What a plan would choose for one length of prompt.

    Attributes:
        input_len: tokens of the prompt.
        verdict: chosen, one device, or nothing fits.
        model: its label; empty where nothing fits.
        devices: how many.
        latency_ms: until the last token.
        why: in words.
    """

    input_len: int
    verdict: Literal["chosen", "one device", "nothing fits"]
    model: str
    devices: int
    latency_ms: float
    why: str


def choose(report: PlanReport, input_len: int) -> Choice:
    """The model to take: the fastest to the last token that fits.

    Of those that are not told apart from it, the one on the fewest devices, and then the standard
    model if it is among them, since that needs no training of its own.
    """
    output_len = report.setup.output_len
    fitting = [p for p in report.of_length(input_len) if p.fits]
    if not fitting:
        memory = report.setup.device.memory_gib.value
        return Choice(
            input_len,
            "nothing fits",
            "",
            0,
            0.0,
            f"nothing fits: no model leaves room for itself on devices of {memory:g} GiB: use more "
            "of them, or larger ones",
        )

    def latency(p: Planned) -> float:
        return p.latency(output_len)

    best = min(fitting, key=latency)
    alike = [p for p in fitting if latency(p) <= ALIKE * latency(best)]
    fewest = min(p.devices for p in alike)
    alike = [p for p in alike if p.devices == fewest]
    standards = [p for p in alike if p.config.wiring == BASELINE]
    chosen = min(standards or alike, key=latency)
    why = _why(report, chosen, fitting)
    verdict: Literal["chosen", "one device"] = "one device" if chosen.devices == 1 else "chosen"
    return Choice(input_len, verdict, chosen.label, chosen.devices, 1e3 * latency(chosen), why)


def _why(report: PlanReport, chosen: Planned, fitting: Sequence[Planned]) -> str:
    output_len = report.setup.output_len
    tokens = "the first token" if output_len == 1 else f"{output_len} tokens"
    said = f"{1e3 * chosen.latency(output_len):.3g} ms to {tokens}"
    if chosen.devices == 1:
        several = [p for p in fitting if p.devices > 1]
        if not several:
            asked = any(p.devices > 1 for p in report.plans)
            return f"{'nothing else fits' if asked else 'nothing else was asked for'}; {said}"
        second = min(several, key=lambda p: p.latency(output_len))
        gain = chosen.latency(output_len) / second.latency(output_len)
        how = "one device is faster" if gain < 1 else "one device is about as fast"
        return (
            f"{how}: {said}, against {1e3 * second.latency(output_len):.3g} ms of {second.label} "
            f"on {second.devices} devices"
        )
    base = report.baseline(chosen)
    prefill = chosen.prefill
    hidden = 1 - prefill.exposed / prefill.communication if prefill.communication else 0.0
    parts = [said]
    if base is not None and base is not chosen:
        ratio = base.latency(output_len) / chosen.latency(output_len)
        parts.append(
            f"{ratio:.2f}x of standard on as many devices ({100 * (1 - 1 / ratio):.0f}% less time)"
        )
    elif base is chosen:
        parts.append(f"no other wiring gains {100 * (ALIKE - 1):.0f}%")
    parts.append(
        f"{prefill.sums} AllReduces of at most {prefill.message_bytes / 2**20:.3g} MiB, "
        f"{100 * max(hidden, 0.0):.0f}% of their time hidden"
    )
    return "; ".join(parts)
