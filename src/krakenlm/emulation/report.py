"""What the grid found, beside what the planner says of the same machine."""

import statistics
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, Literal, NamedTuple

from krakenlm.bench.results import ModelLatency
from krakenlm.config import are_hidden
from krakenlm.emulation.cases import Case, Grid
from krakenlm.emulation.machine import Machine
from krakenlm.emulation.measuring import Found
from krakenlm.plan.paper_grid import PAPER, PAPER_SPEEDUP
from krakenlm.plan.planner import Planned, plan

SCHEMA_VERSION = 1
EMULATED = "emulated: one device stands for several; sums are held for as long as the link says"


class Model(NamedTuple):
    """One model of one cell.

    Attributes:
        measured: emulated.
        planned: for the same machine; None where the planner has no profile of it.
    """

    measured: ModelLatency
    planned: Planned | None

    @property
    def error_percent(self) -> float | None:
        """Of the planned time to first token."""
        if self.planned is None:
            return None
        return 100 * (1e3 * self.planned.prefill.seconds / self.measured.ttft_ms.median - 1)

    @property
    def over_no_comm_percent(self) -> float:
        """What communication adds to the time without it."""
        return 100 * (self.measured.ttft_ms.median / self.measured.no_comm_ttft_ms.median - 1)

    @property
    def cover(self) -> float | None:
        """Planned compute beside sums, attention and its products, over the sums; None without."""
        if self.planned is None or not any(are_hidden(self.planned.config)):
            return None
        prefill = self.planned.prefill
        beside = prefill.parts["attention"] + prefill.parts["overlapped_gemm"]
        return beside / prefill.communication

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        measured, planned = self.measured, self.planned
        return {
            "model": measured.label,
            "wiring": measured.wiring,
            "parameters": measured.parameters,
            "ttft_ms": vars(measured.ttft_ms),
            "no_comm_ttft_ms": vars(measured.no_comm_ttft_ms),
            "over_no_comm_percent": self.over_no_comm_percent,
            "allreduces": measured.allreduces,
            "message_bytes": measured.message_bytes,
            "allreduce_ms": measured.allreduce_ms and measured.allreduce_ms.median,
            "hideable_share": measured.hideable_share,
            "speedup": measured.speedup,
            "planned": planned
            and {
                "ttft_ms": 1e3 * planned.prefill.seconds,
                "no_comm_ms": 1e3 * planned.prefill.compute,
                "compute_beside_sums_over_sums": self.cover,
                "share_from_tables": planned.prefill.measured,
            },
            "planner_error_percent": self.error_percent,
        }


class Pair(NamedTuple):
    """The models of one case."""

    standard: Model
    other: Model

    @property
    def speedup(self) -> float:
        """Of the other one over the standard one; emulated."""
        assert self.other.measured.speedup is not None, "there is a standard model in every case"
        return self.other.measured.speedup

    @property
    def planned_speedup(self) -> float | None:
        """Likewise; None where nothing was planned."""
        if self.standard.planned is None or self.other.planned is None:
            return None
        return self.standard.planned.prefill.seconds / self.other.planned.prefill.seconds


@dataclass(frozen=True, kw_only=True)
class GridReport:
    """A grid as far as it was measured.

    Attributes:
        kind: tells these files from others.
        grid: which cases.
        machine: what it was measured on.
        found: the cases.
        pairs: the models of each measured case.
        command: what was typed.
    """

    kind: Literal["paper-grid-emulated"] = "paper-grid-emulated"
    grid: Grid
    machine: Machine
    found: Found
    pairs: dict[Case, Pair]
    command: tuple[str, ...] = ()

    def errors(self) -> list[float]:
        """Of the planner in per cent, each model of each cell once."""
        seen: dict[tuple[object, ...], float] = {}
        for case, pair in self.pairs.items():
            for model in pair:
                if model.error_percent is not None:
                    seen.setdefault((case.cell, model.measured.label), model.error_percent)
        return list(seen.values())

    def exposed(self) -> list[float]:
        """What communication adds, in per cent, where the planner says that compute can hide it."""
        others = [pair.other for pair in self.pairs.values()]
        return [m.over_no_comm_percent for m in others if m.cover is not None and m.cover >= 1.0]

    def geomeans(self) -> dict[str, "Mean"]:
        """Speedups over standard of each wiring, over the cells that were measured."""
        means = {}
        for wiring in self.grid.wirings:
            pairs = [pair for case, pair in self.pairs.items() if case.wiring == wiring]
            if pairs:
                planned = [p.planned_speedup for p in pairs if p.planned_speedup is not None]
                means[wiring] = Mean(
                    len(pairs),
                    geometric_mean(pair.speedup for pair in pairs),
                    geometric_mean(planned) if planned else None,
                )
        return means

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        means = self.geomeans()
        machine, grid = self.machine, self.grid
        first = next(iter(self.found.reports.values()), None)
        return {
            "kind": self.kind,
            "schema_version": SCHEMA_VERSION,
            "emulated": True,
            "basis": EMULATED,
            "how": first and first.emulation,
            "machine": machine.name,
            "environment": first and vars(first.environment),
            "device_profile": machine.profile and machine.profile.name,
            "link": machine.link.profile.name,
            "allreduce": machine.link.kernel,
            "dtype": machine.dtype,
            "graph_prefill": machine.captures,
            "scale": grid.scale,
            "command": list(self.command),
            "cells_of_the_grid": len({case.cell for case in grid.cases()}),
            "geomean_speedup": {name: mean.measured for name, mean in means.items()},
            "geomean_cells": {name: mean.cells for name, mean in means.items()},
            "geomean_speedup_planned": {name: mean.planned for name, mean in means.items()},
            "paper": {"geomean_speedup": PAPER_SPEEDUP, "source": PAPER},
            "planner_error_percent": _summary([abs(error) for error in self.errors()]),
            "over_no_comm_percent_where_compute_can_hide_sums": _summary(self.exposed()),
            "cells": self._cells(),
            "skipped": {str(case): why for case, why in self.found.skipped.items()},
            "no_time_for": [str(case) for case in self.found.left],
        }

    def _cells(self) -> list[dict[str, Any]]:
        cells: dict[tuple[str, int, int], dict[str, Any]] = {}
        for case, (standard, other) in self.pairs.items():
            cell = cells.setdefault(
                case.cell,
                {
                    "size": case.size,
                    "devices": case.devices,
                    "input_len": case.input_len,
                    "models": [standard.to_json()],
                },
            )
            cell["models"].append(
                {
                    **other.to_json(),
                    "wiring": case.wiring,
                    "standard_ttft_ms": standard.measured.ttft_ms.median,
                }
            )
        return list(cells.values())


class Mean(NamedTuple):
    """The geometric mean of one wiring's speedups.

    Attributes:
        cells: that it is of.
        measured: emulated.
        planned: over the same cells; None where nothing was planned.
    """

    cells: int
    measured: float
    planned: float | None


class Reporter:
    """Makes reports as cases are found; what was planned once is kept.

    Args:
        grid: which cases.
        machine: what they are measured on.
        command: what was typed.
    """

    def __init__(self, grid: Grid, machine: Machine, command: tuple[str, ...] = ()) -> None:
        self._grid = grid
        self._machine = machine
        self._command = command
        self._setup = machine.plan_setup()
        self._planned: dict[tuple[tuple[str, int, int], str], Planned] = {}

    def report(self, found: Found) -> GridReport:
        """All that is known so far."""
        pairs = {}
        for case in self._grid.cases():  # in the order of the grid, however they were found
            report = found.reports.get(case)
            if report is not None:
                standard, other = report.results
                planned = self._plan(case)
                pairs[case] = Pair(Model(standard, planned[0]), Model(other, planned[1]))
        return GridReport(
            grid=self._grid,
            machine=self._machine,
            found=found,
            pairs=pairs,
            command=self._command,
        )

    def _plan(self, case: Case) -> tuple[Planned | None, Planned | None]:
        if self._setup is None:
            return None, None
        tokens, found = self._grid.tokens(case.input_len), []
        for model in self._grid.models(case):
            key = case.cell, model.label
            if key not in self._planned:
                self._planned[key] = plan(model, case.devices, tokens, self._setup)
            found.append(self._planned[key])
        return found[0], found[1]


def _summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values) if values else None,
        "worst": max(values, default=None),
        "models": len(values),
    }
