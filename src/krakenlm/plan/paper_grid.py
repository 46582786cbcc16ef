"""The paper's own experiment on paper, and Ladder's beside it.

Kraken's authors (arXiv 2408.07802) measured the time to the first token of five sizes, two lengths
of prompt and two degrees on 8 A100 40 GB with NVSwitch under TensorRT-LLM, in float16: 1.356 times
standard tensor parallelism's speed in the mean. The same cells are planned here, with every
AllReduce kernel of that link and without communication.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Any, NamedTuple

from krakenlm.bench.models import Contender, in_wiring, parse_wirings
from krakenlm.bench.results import BASELINE, PART_NAMES
from krakenlm.config import ModelConfig, model_config
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import FASTEST, LinkProfile
from krakenlm.plan.planner import Planned, Setup, plan, plan_pass, shards_of
from krakenlm.plan.report import NOT_VALIDATED, SCHEMA_VERSION
from krakenlm.plan.trace import Pass

SIZES = ("1.3B", "6.7B", "13B", "65B", "175B")
INPUT_LENS = (128, 2048)
DEGREES = (4, 8)
DEVICE, LINK = "a100-40gb", "nvswitch-a100"
WIRINGS = ("standard", "parallel", "ladder", "kraken", "shared", "lagged", "lagged-layer")
_EXPLAINED = ("standard", "parallel", "kraken")
"""Planned with every AllReduce kernel."""
_KRAKEN = "hardware-friendly"
PAPER_SPEEDUP = 1.356
PAPER = "arXiv 2408.07802: geometric mean over standard tensor parallelism"
WITHOUT = "without communication"


class LadderFigure(NamedTuple):
    """What Ladder's authors report, and what is planned for that machine.

    Attributes:
        what: which part of a request.
        reported_percent: less time than standard.
        planned_percent: likewise.
    """

    what: str
    reported_percent: float
    planned_percent: float


@dataclass(frozen=True, kw_only=True)
class PaperGrid:
    """The grid, planned.

    Attributes:
        plans: cell by cell, the wirings in order.
        by_kernel: geometric means over standard, for each AllReduce kernel and without
            communication, of the wirings that it was planned for.
        ladder: Ladder's figures.
        kernel: with which ``plans`` were made.
        device: name of the profile.
        link: likewise.
    """

    plans: tuple[Planned, ...]
    by_kernel: dict[str, dict[str, float]]
    ladder: tuple[LadderFigure, ...]
    kernel: str
    device: str
    link: str

    def cells(self) -> Iterator[list[Planned]]:
        """The plans of one size, length and degree after the other."""
        for start in range(0, len(self.plans), len(WIRINGS)):
            yield list(self.plans[start : start + len(WIRINGS)])

    def geomeans(self, over: str = BASELINE) -> dict[str, float]:
        """For each wiring, the geometric mean of another's time over its own."""
        return _geomeans(list(self.cells()), over)

    def parts(self) -> dict[str, dict[str, float]]:
        """For each wiring, the share of each operator in the standard model's time, in the mean.

        So the differences between two wirings add up to what one saves over the other.
        """
        cells = len(self.plans) // len(WIRINGS)
        shares = {wiring: dict.fromkeys(PART_NAMES, 0.0) for wiring in WIRINGS}
        for cell in self.cells():
            whole = cell[0].prefill.seconds
            for planned in cell:
                for name, seconds in planned.prefill.parts.items():
                    shares[planned.config.wiring][name] += seconds / whole / cells
        return shares

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": "paper-grid",
            "schema_version": SCHEMA_VERSION,
            "basis": NOT_VALIDATED,
            "device": self.device,
            "link": self.link,
            "allreduce": self.kernel,
            "kraken": _KRAKEN,
            "geomean_speedup": self.geomeans(),
            "geomean_speedup_over_parallel": self.geomeans("parallel"),
            "geomean_speedup_by_allreduce": self.by_kernel,
            "paper": {"geomean_speedup": PAPER_SPEEDUP, "source": PAPER},
            "parts_of_standard": self.parts(),
            "ladder_70B_8_devices": [figure._asdict() for figure in self.ladder],
            "cells": [_cell(cell) for cell in self.cells()],
        }


def plan_paper_grid(kernel: str | None = None) -> PaperGrid:
    """Plan the grid.

    Args:
        kernel: how sums are made; None is the fastest for each message, as TensorRT-LLM chooses
            by itself.

    Raises:
        KrakenError: the link has no such kernel.
    """
    device, link = DeviceProfile.named(DEVICE), LinkProfile.named(LINK)
    chosen = FASTEST if kernel is None else kernel
    setup = Setup(device=device, link=link, kernel=chosen, graph_prefill=True)
    models = {(size, n): grid_models(model_config(size), n) for size in SIZES for n in DEGREES}
    plans = [
        plan(contender, degree, input_len, setup)
        for (_, degree), contenders in models.items()
        for input_len in INPUT_LENS
        for contender in contenders
    ]
    return PaperGrid(
        plans=tuple(plans),
        by_kernel=_by_kernel(plans, setup),
        ladder=plan_ladder(),
        kernel=chosen,
        device=DEVICE,
        link=LINK,
    )


def grid_models(
    standard: ModelConfig, degree: int, wirings: Sequence[str] = WIRINGS
) -> list[Contender]:
    """A standard shape in some wirings, for as many devices.

    Raises:
        KrakenError: names that do not exist, or a shape that has no such match.
    """
    return [
        model
        for wanted in parse_wirings(wirings)
        for model in in_wiring(standard, wanted, degree, [_KRAKEN])
    ]


def _by_kernel(plans: Sequence[Planned], setup: Setup) -> dict[str, dict[str, float]]:
    explained = [p for p in plans if p.config.wiring in _EXPLAINED]
    bound = [p.prefill.compute for p in explained]
    found = {}
    for kernel in setup.link.kernels:
        other = replace(setup, kernel=kernel)
        found[kernel] = _means([_again(p, other) for p in explained])
    return {**found, WITHOUT: _means(bound)}


def _again(planned: Planned, setup: Setup) -> float:
    """Seconds of the same prompt, summed in another way."""
    shards = shards_of(planned.config, planned.devices, setup)
    return plan_pass(shards, Pass(setup.batch_size, planned.input_len), setup).seconds


def _means(seconds: Sequence[float]) -> dict[str, float]:
    """Geometric means over standard, from the seconds of the explained wirings, cell by cell."""
    width = len(_EXPLAINED)
    first = _EXPLAINED.index(BASELINE)
    return {
        wiring: geometric_mean(
            a / b for a, b in zip(seconds[first::width], seconds[i::width], strict=True)
        )
        for i, wiring in enumerate(_EXPLAINED)
    }


def _geomeans(cells: Sequence[Sequence[Planned]], over: str) -> dict[str, float]:
    names = [str(planned.config.wiring) for planned in cells[0]]
    place = names.index(over)
    return {
        name: geometric_mean(
            cell[place].prefill.seconds / cell[i].prefill.seconds for cell in cells
        )
        for i, name in enumerate(names)
    }


def _cell(cell: Sequence[Planned]) -> dict[str, Any]:
    first = cell[0]
    return {
        "parameters_of_standard": first.parameters,
        "hidden_size_of_standard": first.config.hidden_size,
        "devices": first.devices,
        "input_len": first.input_len,
        "models": [
            {
                "model": planned.label,
                "wiring": planned.config.wiring,
                "ttft_ms": 1e3 * planned.prefill.seconds,
                "speedup": first.prefill.seconds / planned.prefill.seconds,
                "exposed_ms": 1e3 * planned.prefill.exposed,
                "no_comm_ms": 1e3 * planned.prefill.compute,
                "parts_ms": {k: 1e3 * v for k, v in planned.prefill.parts.items()},
                "share_from_tables": planned.prefill.measured,
                "memory_bytes": planned.memory._asdict(),
                "fits": planned.fits,
            }
            for planned in cell
        ],
    }


# Ladder Residual (arXiv 2501.06589): Llama 70B on 8 H100 with NVLink, batch 1. The lengths of
# prompt and answer are assumed.
LADDER_DEVICE, LADDER_LINK, LADDER_KERNEL = "h100", "nvswitch-h100", "nccl"
_LADDER_INPUT, _LADDER_OUTPUT = 1024, 512
_PREFILL_PERCENT, _DECODE_PERCENT = 5.8, 24.0
WITHOUT_P2P_PERCENT = 6.9
LLAMA_70B: dict[str, Any] = {
    "wiring": "standard",
    "num_sublayers": 1,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "heads_per_sublayer": 64,
    "kv_heads_per_sublayer": 8,
    "ffn_dim": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "position": "rope",
    "rope_theta": 500000.0,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "tie_word_embeddings": False,
}


def plan_ladder() -> tuple[LadderFigure, ...]:
    """Ladder against standard for the machine of Ladder's authors."""
    setup = Setup(
        device=DeviceProfile.named(LADDER_DEVICE),
        link=LinkProfile.named(LADDER_LINK),
        kernel=LADDER_KERNEL,
        dtype="bfloat16",
        output_len=_LADDER_OUTPUT,
        graph_prefill=True,
    )
    standard = ModelConfig.from_dict(LLAMA_70B)
    first, second = (
        plan(Contender(config=config, label=config.wiring), 8, _LADDER_INPUT, setup)
        for config in (standard, standard.replace(wiring="ladder"))
    )
    assert first.decode is not None and second.decode is not None
    prefill = first.prefill.seconds / second.prefill.seconds
    decode = first.decode.seconds / second.decode.seconds
    return (
        LadderFigure("prefill", _PREFILL_PERCENT, 100 * (prefill - 1)),
        LadderFigure("decode", _DECODE_PERCENT, 100 * (decode - 1)),
    )
