"""Tables and pictures of docs/latency.md, made from the JSON files under docs/results/latency.

A number that several runs gave is shown as their median, then the lowest and the highest run.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import markers
import recording
from krakenlm.bench.allreduce import AllReduceReport
from krakenlm.bench.figures import draw_breakdowns, draw_latencies
from krakenlm.bench.results import LatencyReport, ModelLatency
from krakenlm.spread import Spread

PAGE = recording.DOCS / "latency.md"
RESULTS = recording.RESULTS / "latency"
SCENARIOS = (
    *("one-host", "veth-1gbit", "veth-1gbit-gloo", "veth-100mbit", "emulated-4-ranks"),
    *("veth-1gbit-chunks", "veth-100mbit-chunks", "emulated-10gbit"),
)
# What vLLM is asked to generate: the time to the first token is that of a request for one, the time
# of each later one a share of what a request for all takes longer.
VLLM_TOKENS = (1, 16)

HIDDEN = "hidden, of what can hide"
ADDED = "added by communication"
# The beginnings of their names.
IN_SHORT = ("kraken (published", "kraken (keep-width", "shared", "lagged")

Value = Callable[[ModelLatency], float | None]


def reports(scenario: str) -> list[LatencyReport]:
    """Every run of a scenario that is there."""
    return [LatencyReport.load(path) for path in sorted((RESULTS / scenario).glob("run-*.json"))]


def over_runs(runs: Sequence[LatencyReport], name: str, value: Value) -> list[float]:
    """One number of a model from each run; empty where the runs have none."""
    found = [value(result) for run in runs for result in run.results if result.name == name]
    return [number for number in found if number is not None]


def cell(numbers: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """The median and, of several numbers, the range."""
    if not numbers:
        return ""
    return Spread.of(numbers).text(digits, unit)


def latency_table(scenario: str) -> str:
    """A row a model: what its runs measured."""
    runs = reports(scenario)
    headings = (
        *("model", "TTFT, ms", "without communication, ms", ADDED, HIDDEN),
        *("TTFT speedup", "TTFT saved", "TPOT, ms", "without communication, ms", "TPOT speedup"),
    )
    rows = [_latency_row(runs, result.name) for result in runs[0].results]
    return markers.markdown(headings, rows, numbers=True) + _conditions(runs, scenario)


def _latency_row(runs: Sequence[LatencyReport], name: str) -> tuple[str, ...]:
    return (
        name,
        cell(over_runs(runs, name, lambda r: r.ttft_ms.median)),
        cell(over_runs(runs, name, lambda r: r.no_comm_ttft_ms.median)),
        cell(over_runs(runs, name, _added_by_communication), " %", 0),
        cell(over_runs(runs, name, _hideable_percent), " %", 0),
        cell(over_runs(runs, name, lambda r: r.speedup), "x", 2),
        cell(over_runs(runs, name, lambda r: r.reduction_percent), " %", 0),
        cell(over_runs(runs, name, lambda r: r.tpot_ms and r.tpot_ms.median)),
        cell(over_runs(runs, name, lambda r: r.no_comm_tpot_ms and r.no_comm_tpot_ms.median)),
        cell(over_runs(runs, name, lambda r: r.tpot_speedup), "x", 2),
    )


def breakdown_table(scenario: str) -> str:
    """A row a model: milliseconds of a prefill by operator."""
    runs = reports(scenario)
    names = [result.name for result in runs[0].results]
    parts = list(runs[0].results[0].breakdown_ms or {})
    rows = [(name, *(cell(over_runs(runs, name, _part(part))) for part in parts)) for name in names]
    headings = ("ms of rank 0", *(part.replace("_", " ") for part in parts))
    return markers.markdown(headings, rows, numbers=True)


def vllm_table() -> str:
    """vLLM's latency beside this engine's, measured in turn on one machine."""
    runs = reports("beside-vllm")
    engine, vllm = vllm_runs()
    rows = [
        (
            f"{engine}, GPT-2, TP=2, compiled",
            cell([run.ttft_ms for run in vllm]),
            cell([run.tpot_ms for run in vllm]),
        )
    ]
    rows += [
        (
            f"krakenlm, {name}",
            cell(over_runs(runs, name, lambda r: r.ttft_ms.median)),
            cell(over_runs(runs, name, lambda r: r.tpot_ms and r.tpot_ms.median)),
        )
        for name in (result.name for result in runs[0].results)
    ]
    return markers.markdown(("engine", "TTFT, ms", "TPOT, ms"), rows, numbers=True)


def summary_table() -> str:
    """A row a link and wiring: its runs beside the standard model's and Ladder's."""
    links = {
        "veth-1gbit": "1 Gbit/s",
        "veth-1gbit-gloo": "1 Gbit/s, gloo",
        "veth-100mbit": "100 Mbit/s",
        "one-host": "one host",
        "emulated-4-ranks": "1 Gbit/s, emulated, 4 ranks",
    }
    rows = []
    for scenario, link in links.items():
        runs = reports(scenario)
        names = [result.name for result in runs[0].results if (result.prefill_chunks or 1) == 1]
        for name in (name for name in names if name.startswith(IN_SHORT)):
            over_ladder = [_ttft(run, "ladder") / _ttft(run, name) for run in runs]
            rows.append(
                (
                    link,
                    name,
                    cell(over_runs(runs, name, lambda r: r.speedup), "x", 2),
                    cell(over_ladder, "x", 2),
                    cell(over_runs(runs, name, _added_by_communication), " %", 0),
                    cell(over_runs(runs, name, lambda r: r.tpot_speedup), "x", 2),
                )
            )
    headings = ("link", "model", "TTFT speedup", "TTFT speedup over Ladder", ADDED, "TPOT speedup")
    return markers.markdown(headings, rows, numbers=True)


def chunks_table() -> str:
    """A row a link and wiring: what chunks alone buy a model whose sums are all exposed."""
    links = {
        "emulated-10gbit": "10 Gbit/s, emulated",
        "veth-1gbit-chunks": "1 Gbit/s",
        "veth-100mbit-chunks": "100 Mbit/s",
    }
    rows = []
    for scenario, link in links.items():
        runs = reports(scenario)
        for name in ("standard", "parallel"):
            in_two = f"{name}, 2 chunks"
            # Each over the standard model by round, and so over one another.
            ratios = (over_runs(runs, n, lambda r: r.speedup) for n in (name, in_two))
            speedups = [two / one for one, two in zip(*ratios, strict=True)]
            saved = [100 * (1 - 1 / speedup) for speedup in speedups]
            times = (cell([_ttft(run, n) for run in runs]) for n in (name, in_two))
            rows.append((link, name, *times, cell(speedups, "x", 2), cell(saved, " %", 0)))
    headings = ("link", "model", "TTFT, ms", "in 2 chunks, ms", "speedup", "TTFT saved")
    return markers.markdown(headings, rows, numbers=True)


def ratios_table() -> str:
    """How near the engine comes to what bounds it, and to vLLM."""
    chunked = "kraken (published width 678), 2 chunks"
    beyond = over_runs(reports("veth-100mbit-chunks"), chunked, _over_communication)
    efficiency = json.loads((RESULTS / "efficiency.json").read_text(encoding="utf-8"))
    share = [100 * efficiency["share"]["median"]]
    beside = list(zip(reports("beside-vllm"), vllm_runs()[1], strict=True))
    first = [run.results[0].ttft_ms.median / vllm.ttft_ms for run, vllm in beside]
    later = [_tpot(run.results[0]) / vllm.tpot_ms for run, vllm in beside]
    rows = [
        (f"100 Mbit/s, {chunked}: TTFT beyond its sums alone", cell(beyond, " %", 0)),
        (
            "one core, standard: FLOP rate of a prefill, of that of its `F.linear` calls alone",
            cell(share, " %", 0),
        ),
        ("one host, standard: TTFT, of vLLM's", cell(first, "x", 2)),
        ("one host, standard: TPOT, of vLLM's", cell(later, "x", 2)),
    ]
    return markers.markdown(("what", "measured"), rows, numbers=True)


def _ttft(run: LatencyReport, name: str) -> float:
    (result,) = (result for result in run.results if result.name == name)
    return result.ttft_ms.median


def _tpot(result: ModelLatency) -> float:
    assert result.tpot_ms is not None, "every scenario has tokens after the first"
    return result.tpot_ms.median


class VllmRun(NamedTuple):
    """What ``vllm bench latency`` found, the median of its rounds."""

    ttft_ms: float
    tpot_ms: float


def vllm_file(run: int, tokens: int) -> str:
    """The name of what vLLM wrote in a run when asked for so many tokens."""
    return f"vllm-{run}-tokens-{tokens}.json"


def vllm_runs() -> tuple[str, list[VllmRun]]:
    """vLLM with its version, and its runs in the order of ours.

    A ``vllm.json`` holds the medians of all runs; otherwise each run has a file for each length.
    """
    folder = RESULTS / "beside-vllm"
    if (folder / "vllm.json").is_file():
        found = json.loads((folder / "vllm.json").read_text("utf-8"))
        return found["engine"], [VllmRun(**burst) for burst in found["bursts"]]
    steps = json.loads((folder / "steps.json").read_text("utf-8"))
    ours = sorted(folder.glob("run-*.json"))
    runs = [_vllm_run(folder, int(path.stem.removeprefix("run-"))) for path in ours]
    return f"vLLM {steps['vllm']['vllm']}", runs


def _vllm_run(folder: Path, run: int) -> VllmRun:
    one, many = VLLM_TOKENS
    first, whole = (
        1000 * json.loads((folder / vllm_file(run, n)).read_text("utf-8"))["percentiles"]["50"]
        for n in VLLM_TOKENS
    )
    return VllmRun(first, (whole - first) / (many - one))


def allreduce_table(scenario: str) -> str:
    """A row a message size, a column a transport: microseconds of one sum."""
    runs = [AllReduceReport.load(p) for p in sorted((RESULTS / scenario).glob("run-*.json"))]
    columns = sorted({(each.transport, each.dtype) for run in runs for each in run.results})
    sizes = sorted({each.bytes for run in runs for each in run.results})
    rows = []
    for size in sizes:
        cells = [f"{size}"]
        for transport, dtype in columns:
            found = [
                each.time_us.median
                for run in runs
                for each in run.results
                if (each.bytes, each.transport, each.dtype) == (size, transport, dtype)
            ]
            cells.append(cell(found, digits=0))
        rows.append(cells)
    headings = ("bytes", *(f"{transport}, {dtype}" for transport, dtype in columns))
    return markers.markdown(headings, rows, numbers=True)


def _added_by_communication(result: ModelLatency) -> float:
    return 100 * (result.ttft_ms.median / result.no_comm_ttft_ms.median - 1)


def _over_communication(result: ModelLatency) -> float | None:
    """Of a link that outlasts compute: what a prefill takes beyond its sums one after the other."""
    if result.communication_ms is None:
        return None
    assert result.communication_ms.median > result.no_comm_ttft_ms.median
    return 100 * (result.ttft_ms.median / result.communication_ms.median - 1)


def _hideable_percent(result: ModelLatency) -> float | None:
    return None if result.hideable_share is None else 100 * result.hideable_share


def _part(part: str) -> Value:
    def value(result: ModelLatency) -> float | None:
        return None if result.breakdown_ms is None else result.breakdown_ms[part]

    return value


def _conditions(runs: Sequence[LatencyReport], scenario: str) -> str:
    command = (RESULTS / scenario / "command.txt").read_text(encoding="utf-8").strip()
    rounds = runs[0].iterations
    return (
        f"\n{len(runs)} runs of {rounds} interleaved rounds; {runs[0].conditions}. "
        f"In brackets: lowest and highest run. Command: `{command}`\n"
    )


def draw_pictures() -> None:
    """A picture of the latest run of each scenario, and of what its prefills consist of."""
    for scenario in SCENARIOS:
        runs = reports(scenario)
        if runs:
            draw_latencies(runs[-1], RESULTS / scenario / "latency.png")
            if any(result.breakdown_ms for result in runs[-1].results):
                draw_breakdowns(runs[-1], RESULTS / scenario / "breakdown.png")


def _of(table: Callable[[str], str], scenario: str) -> markers.Table:
    return lambda: table(scenario)


TABLES: dict[str, markers.Table] = {
    **{f"latency {scenario}": _of(latency_table, scenario) for scenario in SCENARIOS},
    "breakdown one-host": _of(breakdown_table, "one-host"),
    "summary": summary_table,
    "ratios": ratios_table,
    "chunks": chunks_table,
    "vllm": vllm_table,
    "allreduce one-host": _of(allreduce_table, "allreduce-one-host"),
    "allreduce 1gbit": _of(allreduce_table, "allreduce-1gbit"),
}
