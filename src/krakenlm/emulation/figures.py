"""The paper's bar charts, of the emulated grid."""

from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.emulation.report import GridReport
from krakenlm.files import whole_file

_WIDTH = 0.8
"""Of a cell's bars together, where cells are 1 apart."""


def draw_grid(report: GridReport, target: Path) -> None:
    """Speedups of the time to first token, a chart for each number of devices.

    Args:
        report: the grid; cases that were not measured are gaps.
        target: the PNG.
    """
    grid = report.grid
    figure = Figure(figsize=(11, 1.0 + 2.6 * len(grid.devices)), layout="constrained")
    rows = figure.subplots(len(grid.devices), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, devices in zip(rows, grid.devices, strict=True):
        _draw(axes, devices, report)
        axes.set_title(f"{devices}-way", loc="left", fontsize=10)
    shown: dict[str, Artist] = {}
    for axes in rows:  # a wiring may have been measured in one of them only
        handles, labels = axes.get_legend_handles_labels()
        shown.update(zip(labels, handles, strict=True))
    if shown:
        figure.legend(
            shown.values(), shown, loc="outside lower center", ncols=8, fontsize=8, frameon=False
        )
    scale = "" if grid.scale == 1 else f", scaled down by {grid.scale}"
    machine = report.machine
    figure.suptitle(
        f"Time to first token over the standard model's, emulated{scale}\n"
        f"one device stands for several: {machine.name}; {machine.link}; {machine.dtype}; "
        "lines: p10 to p90 of the model's times; dots: planned",
        fontsize=9,
    )
    with whole_file(target) as partial:
        figure.savefig(partial, dpi=150, metadata={"Software": None})


def _draw(axes: Axes, devices: int, report: GridReport) -> None:
    grid = report.grid
    cells = [(size, tokens) for size in grid.sizes for tokens in grid.input_lens]
    width = _WIDTH / len(grid.wirings)
    for index, wiring in enumerate(grid.wirings):
        mine = {
            (case.size, case.input_len): pair
            for case, pair in report.pairs.items()
            if (case.wiring, case.devices) == (wiring, devices)
        }
        if not mine:
            continue
        at = {cell: place - _WIDTH / 2 + (index + 0.5) * width for place, cell in enumerate(cells)}
        colour = WIRING_COLOURS.get(wiring.partition("/")[0].partition(":")[0], f"C{index}")
        axes.bar(
            [at[cell] for cell in mine],
            [pair.speedup for pair in mine.values()],
            width,
            color=colour,
            label=f"{wiring}, emulated",
        )
        for cell, pair in mine.items():
            first, times = pair.standard.measured.ttft_ms.median, pair.other.measured.ttft_ms
            axes.vlines(at[cell], first / times.p90, first / times.p10, "black", linewidth=1)
        planned = [(at[cell], p.planned_speedup) for cell, p in mine.items() if p.planned_speedup]
        if planned:
            axes.plot(*zip(*planned, strict=True), "o", color="black", markersize=3)
    axes.axhline(1.0, color="#7f7f7f", linewidth=1)
    axes.set_ylabel("speedup", fontsize=9)
    names = [f"{size}\n{grid.tokens(tokens)}" for size, tokens in cells]
    axes.set_xticks(range(len(cells)), names, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
