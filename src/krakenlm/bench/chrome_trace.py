"""Recorded events as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.

A process for each model, and in it two tracks for each rank: what it computed, and which sum was
under way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from krakenlm.bench.results import LatencyReport
from krakenlm.engine.trace import Event, Lane

_LANES: tuple[Lane, ...] = ("compute", "communication")


def chrome_trace(timelines: Mapping[str, Sequence[Event]], report: LatencyReport) -> dict[str, Any]:
    """The trace as plain values, for JSON.

    Args:
        timelines: by a model's name, the events of all ranks in one pass.
        report: what was measured beside them; its conditions are written into the trace.
    """
    events: list[dict[str, Any]] = []
    for pid, (name, timeline) in enumerate(timelines.items(), start=1):
        events += _names(pid, name, timeline, report.conditions)
        events += _spans(pid, timeline)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"title": report.title, "conditions": report.conditions},
    }


def _names(pid: int, name: str, timeline: Sequence[Event], conditions: str) -> list[dict[str, Any]]:
    named = [
        _metadata(pid, 0, "process_name", {"name": name}),
        _metadata(pid, 0, "process_labels", {"labels": conditions}),
        _metadata(pid, 0, "process_sort_index", {"sort_index": pid}),
    ]
    for rank in sorted({event.rank for event in timeline}):
        for lane in _LANES:
            tid = _track(rank, lane)
            named.append(_metadata(pid, tid, "thread_name", {"name": f"rank {rank} {lane}"}))
            named.append(_metadata(pid, tid, "thread_sort_index", {"sort_index": tid}))
    return named


def _spans(pid: int, timeline: Sequence[Event]) -> list[dict[str, Any]]:
    """Events in microseconds from the first one of the pass.

    A link carries one message after the other. A sum that is begun while another is under way is
    therefore drawn from that one's end on, and its own beginning is noted.
    """
    origin = min((event.start for event in timeline), default=0.0)
    free: dict[int, float] = {}
    spans = []
    for event in sorted(timeline, key=lambda event: (event.start, -event.end)):
        track, start = _track(event.rank, event.lane), event.start
        span: dict[str, Any] = {"name": event.name, "cat": event.lane, "ph": "X"}
        if event.lane == "communication":
            start = min(max(start, free.get(track, start)), event.end)
            free[track] = event.end
            span["args"] = {"begun": 1e6 * (event.start - origin)}
        span |= {"pid": pid, "tid": track}
        span |= {"ts": 1e6 * (start - origin), "dur": 1e6 * (event.end - start)}
        spans.append(span)
    return spans


def _track(rank: int, lane: Lane) -> int:
    return 2 * rank + 1 + _LANES.index(lane)


def _metadata(pid: int, tid: int, name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": pid, "tid": tid, "args": values}
