"""Measures the cases of the grid one after the other, each into a file of its own.

What is there already is read and not measured again.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from krakenlm.bench.latency import Setup, measure
from krakenlm.bench.models import Contender
from krakenlm.bench.results import LatencyReport
from krakenlm.config import count_parameters
from krakenlm.emulation.cases import Case, Grid
from krakenlm.emulation.footprint import Needs, lacking, needs, room_on
from krakenlm.emulation.machine import Machine
from krakenlm.errors import KrakenError, first_line
from krakenlm.files import write_json
from krakenlm.ranks.devices import DTYPES

IN_TURN = "one after the other, for both do not fit at once"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        iterations: rounds that count.
        warm_up: rounds before them.
        threads: compute threads, on a CPU.
        seconds: no case is begun that would not end by then; None is as long as it takes.
    """

    iterations: int = 5
    warm_up: int = 2
    threads: int = 1
    seconds: float | None = None


@dataclass(kw_only=True)
class Found:
    """What is known of a grid so far.

    Attributes:
        reports: of each case that was measured.
        skipped: why others cannot be.
        left: those that no time was left for.
    """

    reports: dict[Case, LatencyReport] = field(default_factory=dict)
    skipped: dict[Case, str] = field(default_factory=dict)
    left: list[Case] = field(default_factory=list)


def measure_grid(
    grid: Grid,
    machine: Machine,
    effort: Effort,
    folder: Path,
    *,
    on_case: Callable[[Found], None],
    command: Sequence[str] = (),
) -> None:
    """Measure all cases, as far as time goes.

    Args:
        grid: which.
        machine: on what.
        effort: how much.
        folder: for a file a case.
        on_case: told what is known, at first and after each one.
        command: what was typed, for the reports.

    Raises:
        KrakenError: the folder holds cases that were measured otherwise.
    """
    begun = time.monotonic()
    found = Found()
    took: dict[str, float] = {}
    cases = grid.cases()
    for case in cases:
        if (folder / case.file_name).is_file():
            found.reports[case] = _read(folder / case.file_name, grid, case, machine, effort)
    on_case(found)
    for index, case in enumerate(cases):
        if case in found.reports:
            continue
        start = time.monotonic()
        # The first case of a size is taken to be as long as the longest of those before it.
        expected = took.get(case.size, max(took.values(), default=0.0))
        if effort.seconds is not None and start + expected > begun + effort.seconds:
            found.left = [c for c in cases[index:] if c not in found.reports]
            on_case(found)
            return
        report = _measure(grid, case, machine, effort, command)
        if isinstance(report, str):
            found.skipped[case] = report
        else:
            write_json(folder / case.file_name, report.to_json())
            found.reports[case] = report
            took[case.size] = time.monotonic() - start
        on_case(found)


def setup_of(grid: Grid, case: Case, machine: Machine, effort: Effort) -> Setup:
    """How a case is run."""
    return Setup(
        devices=case.devices,
        input_len=grid.tokens(case.input_len),
        output_len=1,
        iterations=effort.iterations,
        warm_up=effort.warm_up,
        dtype=machine.dtype,
        device="cuda" if machine.device.type == "cuda" else "cpu",
        link=machine.link,
        emulate_peers=True,
        graph_prefill=machine.captures,
        threads=effort.threads,
    )


def _measure(
    grid: Grid, case: Case, machine: Machine, effort: Effort, command: Sequence[str]
) -> LatencyReport | str:
    """Both models at once where they fit, else one after the other; or why not even that."""
    models, setup = grid.models(case), setup_of(grid, case, machine, effort)
    dtype = DTYPES[machine.dtype]
    scale = "" if grid.scale == 1 else f", scaled down by {grid.scale}"
    title = f"{case.size} {case.devices}-way{scale}: {setup.input_len} tokens in, emulated"

    def run(contenders: Sequence[Contender], title: str) -> LatencyReport:
        if machine.device.type == "cuda":
            _forget(machine.device)
        size = case.size if grid.scale == 1 else None
        measured = measure(contenders, setup, title=title, command=command, size=size)
        if measured is None:
            raise KrakenError("bench paper-grid runs one rank: start it without torchrun")
        return measured.report

    if _refusal(needs(models, setup, dtype), machine) is None:
        groups = [models]
    else:
        groups = [[model] for model in models]
        title += f"; {IN_TURN}"
    refusals = (_refusal(needs(group, setup, dtype), machine) for group in groups)
    refusal = next(filter(None, refusals), None)
    if refusal is not None:
        return refusal
    try:
        reports = [run(group, title) for group in groups]
    except torch.OutOfMemoryError as error:
        return f"ran out of memory, though {needs(models, setup, dtype).text}: {first_line(error)}"
    return reports[0] if len(reports) == 1 else _together(reports)


def _refusal(need: Needs, machine: Machine) -> str | None:
    if lacking(need, room_on(machine.device)) is None:
        return None
    _forget(machine.device)  # which takes a while
    return lacking(need, room_on(machine.device))


def _together(reports: Sequence[LatencyReport]) -> LatencyReport:
    """One report of two that were measured one after the other."""
    first, second = (report.results[0] for report in reports)
    ratio = first.ttft_ms.median / second.ttft_ms.median
    return replace(
        reports[0], results=(replace(first, speedup=1.0), replace(second, speedup=ratio))
    )


def _forget(device: torch.device) -> None:
    """Let go of the last models, which hold one another."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _read(path: Path, grid: Grid, case: Case, machine: Machine, effort: Effort) -> LatencyReport:
    report = LatencyReport.load(path)
    setup = setup_of(grid, case, machine, effort)
    wanted = {
        "link": f"emulated: {setup.link}",
        "dtype": setup.dtype,
        "input_len": setup.input_len,
        "iterations": setup.iterations,
        "graph_prefill": setup.graph_prefill,
    }
    there = {name: getattr(report, name) for name in wanted}
    there["machine"], wanted["machine"] = report.environment.machine, machine.name
    there["parameters"] = [result.parameters for result in report.results]
    wanted["parameters"] = [count_parameters(m.config) for m in grid.models(case)]
    for name, value in wanted.items():
        if there[name] != value:
            raise KrakenError(
                f"{path} was measured with another {name.replace('_', ' ')}, {there[name]}, where "
                f"{value} is asked for: give another folder, or remove this one"
            )
    return report
