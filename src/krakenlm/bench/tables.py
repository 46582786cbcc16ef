"""Tables for the terminal, drawn from reports alone."""

from rich.table import Table

from krakenlm.bench.results import PART_NAMES, LatencyReport, ModelLatency
from krakenlm.spread import Quantiles

WIDTH = 160
"""A table that is not shown on a terminal is this wide at most, so that no cell is folded."""

_HEADINGS = (
    "model",
    "parameters",
    "TTFT, ms [p10..p90]",
    "bound",
    "exposed",
    "hidden",
    "TPOT, ms",
    "speedup",
    "TTFT saved",
)


def latency_table(report: LatencyReport) -> Table:
    """A line a model; the caption says what it was measured on."""
    table = Table(
        title=report.title,
        title_justify="left",
        caption=report.conditions,
        caption_justify="left",
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for result in report.results:
        table.add_row(*_row(result))
    return table


def breakdown_table(report: LatencyReport) -> Table:
    """Milliseconds of rank 0 in each part of a prefill, a line a model."""
    table = Table(
        title="What a prefill consists of, ms on rank 0 (AllReduce: exposed)",
        title_justify="left",
        caption=report.conditions,
        caption_justify="left",
    )
    for heading in ("model", *PART_NAMES.values(), "all"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for result in report.results:
        parts = result.breakdown_ms
        if parts is not None:
            cells = [milliseconds(parts[part]) for part in PART_NAMES]
            table.add_row(result.name, *cells, milliseconds(sum(parts.values())))
    return table


def milliseconds(value: float) -> str:
    """Three digits or more."""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def _row(result: ModelLatency) -> tuple[str, ...]:
    ttft, exposed = result.ttft_ms, result.exposed_ms
    spread = f"[{milliseconds(ttft.p10)}..{milliseconds(ttft.p90)}]"
    return (
        result.name,
        f"{result.parameters / 1e6:.1f}M",
        # The bracket would open a style.
        f"{milliseconds(ttft.median)} \\{spread}",
        milliseconds(result.no_comm_ttft_ms.median),
        "" if exposed is None else milliseconds(max(exposed.median, 0.0)),
        _share(result.hidden_share),
        _median(result.tpot_ms),
        "" if result.speedup is None else f"{result.speedup:.2f}x",
        "" if result.reduction_percent is None else f"{result.reduction_percent + 0.0:.1f}%",
    )


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _median(quantiles: Quantiles | None) -> str:
    return "" if quantiles is None else milliseconds(quantiles.median)
