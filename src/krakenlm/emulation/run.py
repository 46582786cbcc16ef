"""The whole of ``krakenlm bench paper-grid``: a folder that holds what is known at any time."""

from collections.abc import Callable, Sequence
from pathlib import Path

from krakenlm.bench.latency import check
from krakenlm.emulation import PICTURE, SUMMARY
from krakenlm.emulation.cases import Grid, check_grid
from krakenlm.emulation.figures import draw_grid
from krakenlm.emulation.machine import Machine
from krakenlm.emulation.measuring import Effort, Found, measure_grid, setup_of
from krakenlm.emulation.report import GridReport, Reporter
from krakenlm.files import disk_errors, hold, write_json


def check_run(grid: Grid, machine: Machine, effort: Effort) -> None:
    """Refuse what cannot be measured, before anything is started.

    Raises:
        KrakenError: cases that do not exist, numbers that do not fit them.
    """
    check_grid(grid)
    for case in grid.cases():
        check(grid.models(case), setup_of(grid, case, machine, effort))


def run_grid(
    folder: Path,
    grid: Grid,
    machine: Machine,
    effort: Effort,
    *,
    on_case: Callable[[], None] = lambda: None,
    command: Sequence[str] = (),
) -> GridReport:
    """Measure what is not there yet, and put down all that is known.

    After every case the summary holds it; the picture is drawn at the end, also where that is an
    interrupt.

    Args:
        folder: made if it is not there.
        grid: which cases; ``check_run`` has seen them.
        machine: on what.
        effort: how much is measured.
        on_case: called for each case that is known.
        command: what was typed.

    Raises:
        KrakenError: a folder that cannot be written to or holds cases that were measured otherwise.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(grid, machine, tuple(command))
    report, known = reporter.report(Found()), 0

    def put_down(found: Found) -> None:
        nonlocal report, known
        report = reporter.report(found)
        write_json(folder / SUMMARY, report.to_json())
        for _ in range(len(found.reports) + len(found.skipped) - known):
            on_case()
            known += 1

    with hold(folder, f"{folder} is held by another krakenlm: give another folder"):
        try:
            measure_grid(grid, machine, effort, folder, on_case=put_down, command=command)
        finally:
            if report.pairs:
                draw_grid(report, folder / PICTURE)
    return report
