"""Plans as tables for the terminal."""

from rich.table import Table

from krakenlm.bench.results import PART_NAMES
from krakenlm.plan.planner import Planned
from krakenlm.plan.report import PlanReport, ratios

WIDTH = 170
"""A table that is not shown on a terminal is this wide at most, so that no cell is folded."""

_HEADINGS = (
    "model",
    "devices",
    "TTFT, ms",
    "speedup (saved)",
    "exposed, ms",
    "TPOT, ms",
    "speedup (saved)",
    "GiB a device",
    "context",
    "batch",
    "tables",
)


def plan_table(report: PlanReport, input_len: int) -> Table:
    """A line a model for one length of prompt."""
    setup = report.setup
    kernel = setup.kernel or setup.link.usual_kernel
    table = Table(
        title=f"{report.title}: {input_len} tokens in, {setup.output_len} out",
        caption=f"planned, not measured: {setup.device.title}; {setup.link.title}, {kernel}; "
        f"{setup.dtype}. Speedups: over standard on as many devices. Context, batch: the most that "
        "fit. Tables: share of the first token's time from measured tables, the rest by formula",
        title_justify="left",
        caption_justify="left",
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    before = None
    for planned in report.of_length(input_len):
        if before not in (None, planned.devices):
            table.add_section()
        before = planned.devices
        table.add_row(*_row(report, planned))
    return table


def parts_table(report: PlanReport, input_len: int) -> Table:
    """What each prefill consists of."""
    table = Table(
        title=f"What a prefill of {input_len} tokens consists of, ms (AllReduce: exposed)",
        title_justify="left",
    )
    for heading in ("model", "devices", *PART_NAMES.values(), "all"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for planned in report.of_length(input_len):
        parts = planned.prefill.parts
        cells = [milliseconds(parts[name]) for name in PART_NAMES]
        table.add_row(
            _name(planned), str(planned.devices), *cells, milliseconds(sum(parts.values()))
        )
    return table


def milliseconds(seconds: float) -> str:
    """Three digits or more."""
    ms = 1e3 * seconds
    return f"{ms:.1f}" if abs(ms) >= 100 else f"{ms:.2f}" if abs(ms) >= 1 else f"{ms:.3f}"


def speedup(ratio: float | None) -> str:
    """A ratio of times and the same as less time: ``1.35x (26%)``."""
    return "" if ratio is None else f"{ratio:.2f}x ({100 * (1 - 1 / ratio) + 0.0:.0f}%)"


def _name(planned: Planned) -> str:
    chunks = planned.prefill_chunks
    return planned.label if chunks == 1 else f"{planned.label}, {chunks} chunks"


def _row(report: PlanReport, planned: Planned) -> tuple[str, ...]:
    ratio = ratios(report, planned)
    decode = planned.decode
    gib = f"{planned.memory.total / 2**30:.2f}"
    return (
        _name(planned),
        str(planned.devices),
        milliseconds(planned.prefill.seconds),
        speedup(ratio.ttft),
        milliseconds(planned.prefill.exposed),
        "" if decode is None else milliseconds(decode.seconds),
        speedup(ratio.tpot),
        gib if planned.fits else f"{gib}, too much",
        f"{planned.room.context:,}",
        f"{planned.room.batch:,}",
        f"{planned.prefill.measured:.0%}",
    )
