"""The planned grid of the paper for the terminal, and what its difference from the paper is."""

from collections.abc import Iterator

from rich.table import Table

from krakenlm.bench.results import BASELINE, PART_NAMES
from krakenlm.plan.paper_grid import (
    INPUT_LENS,
    PAPER_SPEEDUP,
    SIZES,
    WIRINGS,
    WITHOUT,
    WITHOUT_P2P_PERCENT,
    PaperGrid,
)
from krakenlm.plan.tables import milliseconds, speedup

_KRAKEN = "kraken"


def grid_tables(grid: PaperGrid) -> Iterator[Table]:
    """The cells with their mean; the operators; the AllReduce kernels; Ladder's figures."""
    yield _cells(grid)
    yield _operators(grid)
    yield _kernels(grid)
    yield _ladder(grid)


def explanations(grid: PaperGrid) -> Iterator[str]:
    """Kraken's mean beside the paper's, and where it comes from."""
    found = grid.geomeans()[_KRAKEN]
    yield (
        f"kraken over standard, geometric mean: planned {found:.3f}x ({_saved(found)} less time), "
        f"paper {PAPER_SPEEDUP}x ({_saved(PAPER_SPEEDUP)} less time)"
    )
    parts = grid.parts()
    differences = {
        PART_NAMES[name]: parts[BASELINE][name] - parts[_KRAKEN][name] for name in PART_NAMES
    }
    # An overlapped product is a product.
    differences["GEMM"] += differences.pop(PART_NAMES["overlapped_gemm"])
    ordered = sorted(differences.items(), key=lambda item: -abs(item[1]))
    said = ", ".join(f"{name} {100 * share:+.1f}%" for name, share in ordered)
    yield f"of the standard model's time kraken saves, by operator, in the mean: {said}"
    bound = grid.by_kernel[WITHOUT][_KRAKEN]
    kernels = ", ".join(
        f"{100 * (means[_KRAKEN] / PAPER_SPEEDUP - 1):+.0f}% with {kernel}"
        for kernel, means in grid.by_kernel.items()
        if kernel != WITHOUT
    )
    yield (
        f"planned over paper, by AllReduce kernel: {100 * (found / PAPER_SPEEDUP - 1):+.0f}% with "
        f"{grid.kernel}, {kernels}; without communication kraken is at {bound:.2f}x, so that the "
        "kernel decides how much is gained"
    )
    yield (
        f"Ladder: reported in arXiv 2501.06589, {WITHOUT_P2P_PERCENT}% for prefill without P2P; "
        "docs/planner.md says why the planned prefill is far from it"
    )


def _saved(ratio: float) -> str:
    return f"{100 * (1 - 1 / ratio):.0f}%"


def _cells(grid: PaperGrid) -> Table:
    table = Table(
        title="Time to first token, ms: the paper's grid, planned",
        caption=f"planned, not measured: {grid.device}, {grid.link}, {grid.kernel}; float16; batch "
        "1; *: does not fit this memory; speedups over standard (less time)",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("size", "devices", "tokens", "standard", *WIRINGS[1:]):
        table.add_column(heading, justify="right")
    cells = list(grid.cells())
    for index, cell in enumerate(cells):
        size = SIZES[index * len(SIZES) // len(cells)]
        first = cell[0].prefill.seconds
        marks = ["" if planned.fits else "*" for planned in cell]
        ratios = [speedup(first / p.prefill.seconds) + m for p, m in zip(cell, marks, strict=True)]
        table.add_row(
            size,
            str(cell[0].devices),
            str(cell[0].input_len),
            milliseconds(first) + marks[0],
            *ratios[1:],
            end_section=cell[0].input_len == INPUT_LENS[-1] and cell[0].devices == 8,
        )
    for name, means in (
        ("mean, over standard", grid.geomeans()),
        ("over parallel", grid.geomeans("parallel")),
    ):
        table.add_row(name, "", "", "", *(speedup(means[w]) for w in WIRINGS[1:]))
    return table


def _operators(grid: PaperGrid) -> Table:
    table = Table(
        title="By operator, in per cent of the standard model's time, mean of the cells",
        title_justify="left",
    )
    for heading in ("model", *PART_NAMES.values(), "all"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for wiring, parts in grid.parts().items():
        cells = [f"{100 * parts[name]:.1f}" for name in PART_NAMES]
        table.add_row(wiring, *cells, f"{100 * sum(parts.values()):.1f}")
    return table


def _kernels(grid: PaperGrid) -> Table:
    table = Table(
        title="Geometric mean over standard, by AllReduce kernel",
        title_justify="left",
    )
    names = list(next(iter(grid.by_kernel.values())))[1:]
    for heading in ("AllReduce", *names):
        table.add_column(heading, justify="left" if heading == "AllReduce" else "right")
    for kernel, means in grid.by_kernel.items():
        table.add_row(kernel, *(speedup(means[name]) for name in names))
    chosen = grid.geomeans()
    table.add_row(grid.kernel, *(speedup(chosen[name]) for name in names))
    return table


def _ladder(grid: PaperGrid) -> Table:
    table = Table(
        title="Ladder over standard, 70B on 8 H100, batch 1: speed gained",
        title_justify="left",
    )
    for heading in ("", "reported", "planned"):
        table.add_column(heading, justify="right" if heading else "left")
    for figure in grid.ladder:
        table.add_row(
            figure.what, f"{figure.reported_percent:.1f}%", f"{figure.planned_percent:.1f}%"
        )
    return table
