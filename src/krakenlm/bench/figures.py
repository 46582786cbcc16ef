"""Pictures of results: loss curves, latency bars, the timeline of AllReduce beside attention.

Each function draws from plain results and writes one PNG; nothing here measures anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from krakenlm.bench.results import LatencyReport
from krakenlm.parallel.trace import Event

WIRING_COLOURS = {
    "standard": "#7f7f7f",
    "parallel": "#d08b2e",
    "ladder": "#3d7ea6",
    "kraken": "#8a2f62",
}
_EVENT_COLOURS = {
    "attention": "#3d7ea6",
    "feed-forward": "#9fc3d6",
    "attention and feed-forward": "#6aa1bf",
    "AllReduce": "#8a2f62",
    "wait": "#f2d7a0",
}


def draw_losses(histories: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Training and validation loss over tokens, a line each model.

    Args:
        histories: by label, what ``history.json`` of a run holds.
        target: the PNG.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, history in histories.items():
        colour = WIRING_COLOURS[label.split()[0]]
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
    """Median time to first token with its spread, and within each bar the compute alone."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for row, result in enumerate(report.results):
        ttft, bound = result.ttft_ms, result.no_comm_ttft_ms
        colour = WIRING_COLOURS[result.wiring]
        axes.barh(row, ttft.median, color=colour, alpha=0.45)
        axes.barh(row, bound.median, color=colour)
        axes.errorbar(
            ttft.median,
            row,
            xerr=[[ttft.median - ttft.p10], [ttft.p90 - ttft.median]],
            color="black",
            capsize=3,
            linewidth=1,
        )
        note = f"{ttft.median:.1f} ms, {result.speedup:.2f}x"
        axes.annotate(
            note,
            (max(ttft.p90, ttft.median), row),
            xytext=(6, -3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_yticks(range(len(report.results)), [result.wiring for result in report.results])
    axes.invert_yaxis()
    axes.set_xlim(right=1.25 * max(result.ttft_ms.p90 for result in report.results))
    axes.set_xlabel("time to first token, ms (dark: with communication left out; line: p10 to p90)")
    axes.set_title(report.title, fontsize=9)
    _save(figure, target)


def draw_timelines(timelines: Mapping[str, Sequence[Event]], target: Path, layers: int = 4) -> None:
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
    rows[-1].set_xlabel(f"ms, rank 0, first {layers} layers of a recorded pass")
    _legend(figure)
    _save(figure, target)


def _first_layers(events: Sequence[Event], layers: int) -> list[Event]:
    """Events up to the end of the compute of layer ``layers``."""
    last = [
        event.end
        for event in events
        if event.name.rpartition(" ")[2].isdigit() and int(event.name.rpartition(" ")[2]) <= layers
    ]
    return [event for event in events if event.start < max(last)]


def _legend(figure: Figure) -> None:
    handles = [
        matplotlib.patches.Patch(color=colour, label=name)
        for name, colour in _EVENT_COLOURS.items()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
    )


def _save(figure: Figure, target: Path) -> None:
    figure.savefig(target, dpi=150, metadata={"Software": None})
