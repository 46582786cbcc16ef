"""The first token of every wiring over every link of the plan, each link measured once and kept."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from krakenlm.bench.latency import Setup, Timelines, measure
from krakenlm.bench.models import Contender
from krakenlm.bench.results import LatencyReport
from krakenlm.config import count_parameters
from krakenlm.console import notes, print_note, progress_bar
from krakenlm.demo.plan import DEVICES, Plan, Wire
from krakenlm.engine.trace import Event
from krakenlm.files import write_json
from krakenlm.ranks.namespaces import Namespace, NoNamespacesError, linked_namespaces
from krakenlm.transport.links import Link


class Way(NamedTuple):
    """How a link comes about; nothing is the memory of one host.

    Attributes:
        places: namespaces with a real link between them.
        link: emulated.
    """

    places: tuple[Namespace, ...] | None = None
    link: Link | None = None


def time_links(plan: Plan) -> tuple[list[LatencyReport], Timelines]:
    """Measure what is not measured yet.

    Returns:
        Reports in the order of the plan's links, and the timelines of the link that is recorded.
    """
    reports = [_report(plan, wire) for wire in plan.wires]
    recorded = json.loads(_timelines(plan).read_text(encoding="utf-8"))
    return reports, {w: [Event(*event) for event in events] for w, events in recorded.items()}


def _report(plan: Plan, wire: Wire) -> LatencyReport:
    file = plan.first_token(wire)
    if file.is_file() and (_timelines(plan).is_file() or not wire.record):
        notes.print(f"{file}: measured already, remove it to measure again")
        return LatencyReport.load(file)
    with _way_over(wire) as way:
        report, timelines = _measure(plan, wire, way)
    if wire.record:
        write_json(_timelines(plan), timelines)
    write_json(file, report.to_json())
    return report


def _timelines(plan: Plan) -> Path:
    return plan.out / "timelines.json"


@contextmanager
def _way_over(wire: Wire) -> Iterator[Way]:
    """A real link where this machine lets us make one, else an emulated one; said either way."""
    if wire.rate is None:
        yield Way()
        return
    with ExitStack() as stack:
        try:
            way = Way(places=stack.enter_context(linked_namespaces(wire.rate)))
            how = "a real link between two network namespaces"
        except NoNamespacesError as error:
            way = Way(link=wire.emulated)
            how = f"an emulated link, since network namespaces cannot be made here: {error}"
        print_note(f"{wire.title}: {how}")
        yield way


def _measure(plan: Plan, wire: Wire, way: Way) -> tuple[LatencyReport, Timelines]:
    setup = Setup(
        devices=DEVICES,
        input_len=plan.prompt_tokens,
        output_len=1,
        iterations=wire.rounds,
        warm_up=wire.warm_up,
        device="cpu",
        link=way.link,
        places=way.places,
        record=wire.record,
        sums_alone=False,
    )
    parameters = count_parameters(plan.timed_standard())
    with progress_bar() as bar:
        task = bar.add_task(f"timing the first token, {wire.title}", total=setup.rounds)
        measured = measure(
            [Contender(config=config, label=wiring) for wiring, config in plan.timed.items()],
            setup,
            title=f"{parameters / 1e6:.0f}M parameters, {plan.prompt_tokens}-token prompt, "
            f"{DEVICES} processes",
            size=plan.timed_size,
            on_round=lambda: bar.advance(task),
        )
    assert measured is not None, "the demo starts its own ranks"
    return measured
