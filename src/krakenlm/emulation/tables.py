"""The emulated grid for the terminal."""

import statistics

from rich.table import Table

from krakenlm.bench.tables import milliseconds
from krakenlm.emulation.measuring import IN_TURN
from krakenlm.emulation.report import EMULATED, GridReport
from krakenlm.plan.paper_grid import PAPER_SPEEDUP
from krakenlm.plan.tables import speedup


def grid_table(report: GridReport) -> Table:
    """A line a cell: the standard model's time, and each wiring's speedup over it."""
    grid, machine = report.grid, report.machine
    scale = "" if grid.scale == 1 else f", scaled down by {grid.scale}"
    table = Table(
        title=f"Time to first token, ms: the paper's grid, emulated{scale}",
        caption=f"{EMULATED}: {machine.name}; {machine.link}; {machine.dtype}; batch 1. Speedups "
        f"over standard, planned ones in brackets; means with what that is less time. *: {IN_TURN}",
        title_justify="left",
        caption_justify="left",
    )
    headings = ("size", "devices", "tokens", "standard", *grid.wirings)
    for heading in headings:
        table.add_column(heading, justify="right")
    cells: dict[tuple[str, int, int], dict[str, str]] = {}
    for case, pair in report.pairs.items():
        first = milliseconds(pair.standard.measured.ttft_ms.median)
        row = cells.setdefault(case.cell, {"standard": first})
        mark = "*" if IN_TURN in report.found.reports[case].title else ""
        # The bracket would open a style.
        planned = pair.planned_speedup and f" \\[{pair.planned_speedup:.2f}x]"
        row[case.wiring] = f"{pair.speedup:.2f}x{mark}{planned or ''}"
    for (size, devices, tokens), row in cells.items():
        texts = (row.get(name, "") for name in headings[3:])
        table.add_row(size, str(devices), str(grid.tokens(tokens)), *texts)
    means = report.geomeans()
    if means:
        table.add_section()
        texts = (speedup(means[w].measured) if w in means else "" for w in grid.wirings)
        table.add_row("mean", "", "", "", *texts)
    return table


def remarks(report: GridReport) -> list[str]:
    """Kraken's mean beside the paper's, the planner's error, and what is missing."""
    lines = []
    means = report.geomeans()
    cells = len({case.cell for case in report.grid.cases()})
    if "kraken" in means:
        mean = means["kraken"]
        is_the_papers = report.grid.scale == 1
        paper = f", paper {PAPER_SPEEDUP}x on its own machine" if is_the_papers else ""
        lines.append(
            f"kraken over standard, geometric mean of {mean.cells} of {cells} cells: emulated "
            f"{mean.measured:.3f}x{paper}"
        )
    errors = [abs(error) for error in report.errors()]
    if errors:
        lines.append(
            f"the planner against these times: median error {statistics.median(errors):.1f}%, "
            f"worst {max(errors):.1f}%, {len(errors)} models"
        )
    elif report.machine.profile is None:
        lines.append(
            "nothing was planned beside: there is no profile of this device: give one that "
            "krakenlm calibrate wrote, with --profile"
        )
    exposed = report.exposed()
    if exposed:
        lines.append(
            "where compute beside sums outlasts them, by plan, communication adds "
            f"{statistics.median(exposed):.1f}% to the time without it, at most "
            f"{max(exposed):.1f}%, {len(exposed)} models"
        )
    for case, why in report.found.skipped.items():
        lines.append(f"left out: {case}: {why}")
    if report.found.left:
        lines.append(
            f"no time was left for {len(report.found.left)} cases, the first of them "
            f"{report.found.left[0]}: the same command goes on there"
        )
    return lines
