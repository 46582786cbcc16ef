"""Pictures of results: loss curves, latency bars, the timeline of AllReduce beside attention.

Each function draws from plain results and writes one PNG, whole or not at all; nothing here
measures anything.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from krakenlm.bench.results import PART_NAMES, LatencyReport
from krakenlm.engine.trace import Event
from krakenlm.files import whole_file
from krakenlm.spread import Quantiles

WIRING_COLOURS = {
    "standard": "#7f7f7f",
    "parallel": "#d08b2e",
    "ladder": "#3d7ea6",
    "kraken": "#8a2f62",
    "shared": "#2e8b57",
    "kraken-shared": "#c05a96",
    "lagged": "#6a51a3",
    "lagged-layer": "#b2423a",
}
_EVENT_COLOURS = {
    "attention": "#3d7ea6",
    "feed-forward": "#9fc3d6",
    "attention and feed-forward": "#6aa1bf",
    "AllReduce": "#8a2f62",
    "wait": "#f2d7a0",
}
_PART_COLOURS = {
    "norm": "#c9b458",
    "gemm": "#3d7ea6",
    "overlapped_gemm": "#9fc3d6",
    "attention": "#4f8f5b",
    "allreduce": "#8a2f62",
    "lm_head": "#d08b2e",
    "other": "#bdbdbd",
}


def draw_losses(histories: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Training and validation loss over tokens, a line each model.

    Args:
        histories: by label, what ``history.json`` of a run holds; a label that begins with a wiring
            has its colour.
        target: the PNG.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (label, history) in enumerate(histories.items()):
        colour = WIRING_COLOURS.get(re.split("[ /]", label)[0], f"C{index}")
        for part, style in (("training", {"alpha": 0.45}), ("validation", {"marker": "o"})):
            entries = history[part]
            tokens = [entry["step"] * history["tokens_per_step"] for entry in entries]
            losses = [entry["loss"] for entry in entries]
            axes.plot(tokens, losses, color=colour, label=f"{label}, {part}", **style)
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter())
    axes.legend(frameon=False, fontsize=8)
    _save(figure, target)


def draw_latencies(report: LatencyReport, target: Path) -> None:
    """Time to first token and, where it was measured, per token after: a bar a model.

    Medians with their spread; the dark part of a bar is the same without communication.
    """
    panels: list[tuple[str, Sequence[tuple[Quantiles, Quantiles | None]]]] = [
        ("time to first token, ms", [(r.ttft_ms, r.no_comm_ttft_ms) for r in report.results])
    ]
    tpot = [(r.tpot_ms, r.no_comm_tpot_ms) for r in report.results if r.tpot_ms is not None]
    if len(tpot) == len(report.results):
        panels.append(("time per token after the first, ms", tpot))
    speedups = ([r.speedup for r in report.results], [r.tpot_speedup for r in report.results])
    height = 1.8 + 0.4 * len(report.results)
    figure = Figure(figsize=(7 if len(panels) == 1 else 11, height), layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    colours = [WIRING_COLOURS[result.wiring] for result in report.results]
    for axes, (heading, bars), ratios in zip(columns, panels, speedups, strict=False):
        _draw_bars(axes, bars, colours, ratios)
        axes.set_xlabel(heading, fontsize=9)
    names = [result.name for result in report.results]
    columns[0].set_yticks(range(len(names)), names)
    columns[0].invert_yaxis()
    _caption(figure, report, "dark: without communication; line: p10 to p90")
    _save(figure, target)


def draw_links(reports: Mapping[str, LatencyReport], target: Path) -> None:
    """Time to first token over several links: a panel a link, a bar a model.

    Args:
        reports: of the same models in the same order, by what the panels are called.
        target: the PNG.
    """
    first = next(iter(reports.values()))
    height = 1.6 + 0.32 * len(first.results)
    figure = Figure(figsize=(11, height), layout="constrained")
    columns = figure.subplots(1, len(reports), squeeze=False, sharey=True)[0]
    colours = [WIRING_COLOURS[result.wiring] for result in first.results]
    for axes, (link, report) in zip(columns, reports.items(), strict=True):
        bars = [(r.ttft_ms, r.no_comm_ttft_ms) for r in report.results]
        _draw_bars(axes, bars, colours, [r.speedup for r in report.results], room=1.9)
        axes.set_title(link, loc="left", fontsize=10)
        axes.set_xlabel("time to first token, ms", fontsize=9)
    names = [result.name for result in first.results]
    columns[0].set_yticks(range(len(names)), names)
    columns[0].invert_yaxis()
    figure.suptitle(f"{first.title}\ndark: without communication; line: p10 to p90", fontsize=8)
    _save(figure, target)


def _draw_bars(
    axes: Axes,
    bars: Sequence[tuple[Quantiles, Quantiles | None]],
    colours: Sequence[str],
    speedups: Sequence[float | None],
    room: float = 1.5,
) -> None:
    for row, ((whole, bound), colour) in enumerate(zip(bars, colours, strict=True)):
        axes.barh(row, whole.median, color=colour, alpha=0.45)
        if bound is not None:
            axes.barh(row, bound.median, color=colour)
        axes.errorbar(
            whole.median,
            row,
            xerr=[[whole.median - whole.p10], [whole.p90 - whole.median]],
            color="black",
            capsize=3,
            linewidth=1,
        )
        speedup = speedups[row]
        axes.annotate(
            f"{whole.median:.1f} ms" + ("" if speedup is None else f", {speedup:.2f}x"),
            (max(whole.p90, whole.median), row),
            xytext=(6, -3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlim(right=room * max(whole.p90 for whole, _ in bars))


def draw_breakdowns(report: LatencyReport, target: Path) -> None:
    """What a prefill of each model consists of, as stacked bars."""
    shown = [(r.name, r.breakdown_ms) for r in report.results if r.breakdown_ms is not None]
    figure = Figure(figsize=(8, 1.8 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, (_, parts) in enumerate(shown):
        left = 0.0
        for part in PART_NAMES:
            axes.barh(row, parts[part], left=left, color=_PART_COLOURS[part])
            left += parts[part]
        axes.annotate(
            f"{left:.1f} ms", (left, row), xytext=(4, -3), textcoords="offset points", fontsize=8
        )
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(right=1.2 * max(sum(parts.values()) for _, parts in shown))
    axes.set_xlabel("ms of rank 0 in one prefill (AllReduce: what is exposed of it)", fontsize=8)
    _legend(figure, {PART_NAMES[part]: colour for part, colour in _PART_COLOURS.items()})
    _caption(figure, report)
    _save(figure, target)


def draw_timelines(
    timelines: Mapping[str, Sequence[Event]],
    target: Path,
    layers: int = 4,
    *,
    what: str = "a recorded pass",
) -> None:
    """What rank 0 computed and which AllReduce was under way, the first layers of each wiring."""
    figure = Figure(figsize=(9, 1.2 + 1.1 * len(timelines)), layout="constrained")
    rows = figure.subplots(len(timelines), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (wiring, events) in zip(rows, timelines.items(), strict=True):
        shown = _first_layers([event for event in events if event.rank == 0], layers)
        origin = min(event.start for event in shown)
        for event in shown:
            name = event.name.rstrip("0123456789 ")
            axes.barh(
                1 if event.lane == "compute" else 0,
                1000 * (event.end - event.start),
                left=1000 * (event.start - origin),
                color=_EVENT_COLOURS[name],
                edgecolor="white",
                linewidth=0.5,
                height=0.8,
            )
        axes.set_yticks([0, 1], ["AllReduce", "compute"], fontsize=8)
        axes.set_title(wiring, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel(f"ms, rank 0, first {layers} layers of {what}")
    _legend(figure, _EVENT_COLOURS)
    _save(figure, target)


def _first_layers(events: Sequence[Event], layers: int) -> list[Event]:
    """Events up to the end of the compute of layer ``layers``."""
    last = [
        event.end
        for event in events
        if event.name.rpartition(" ")[2].isdigit() and int(event.name.rpartition(" ")[2]) <= layers
    ]
    return [event for event in events if event.start < max(last)]


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    handles = [
        matplotlib.patches.Patch(color=colour, label=name) for name, colour in colours.items()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
    )


def _caption(figure: Figure, report: LatencyReport, *lines: str) -> None:
    figure.suptitle("\n".join((report.title, report.conditions, *lines)), fontsize=8)


def _save(figure: Figure, target: Path) -> None:
    with whole_file(target) as partial:
        figure.savefig(partial, dpi=150, metadata={"Software": None})
