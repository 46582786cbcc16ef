"""``krakenlm bench``: latency of models against each other, and of the sums beneath them."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from krakenlm.cli.options import (
    DeviceOption,
    LinkOption,
    TensorParallelOption,
    ThreadsOption,
    TransportOption,
    positive_numbers,
)
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.bench.allreduce import Sweep
    from krakenlm.bench.latency import Measured, Setup
    from krakenlm.bench.models import Contender
    from krakenlm.bench.results import LatencyReport

app = typer.Typer(
    name="bench", help="Measure latency, and the sums over ranks beneath it.", no_args_is_help=True
)

_SIZE = "124M"
_WIRINGS = "standard,parallel,ladder,kraken,shared,lagged,lagged-layer"
_KRAKEN = "published"

_Model = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="The folder of a saved model: it is timed, with its weights, in place of a size.",
    ),
]
_Size = Annotated[
    str | None,
    typer.Option(help="A standard shape: gpt2, 124M, 355M, 1.5B, 6.7B, ...", show_default=_SIZE),
]
_Wirings = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Architectures, in the order they take turns; with MODEL, others of its weights. "
        "shared/2 and kraken-shared/2 sum half of the channels a layer. In shared:16-29 and "
        "shared/2:0+4-11 only these layers hide their sums.",
        show_default=_WIRINGS,
    ),
]
_Devices = Annotated[
    int | None,
    typer.Option(help="Ranks; by default 2, under torchrun its own number.", show_default="2"),
]
_InputLen = Annotated[int, typer.Option(help="Tokens of a prompt.")]
_OutputLen = Annotated[int, typer.Option(help="Tokens to generate; 1 is the first token only.")]
_BatchSize = Annotated[int, typer.Option(help="Prompts at once.")]
_NumIters = Annotated[int, typer.Option(help="Rounds that count; each runs every model once.")]
_NumItersWarmup = Annotated[int, typer.Option(help="Rounds before them.")]
_DType = Annotated[
    str,
    typer.Option(help="auto (bfloat16 where the device has it), float32, bfloat16, float16."),
]
_EmulatePeers = Annotated[
    bool,
    typer.Option(
        "--emulate-peers",
        help="Run the first rank's part alone, on one device; its peers are never late.",
    ),
]
_PrefillChunks = Annotated[
    str,
    typer.Option(metavar="LIST", help="Parts of a prompt that hide one another's AllReduces."),
]
_Placement = Annotated[
    str | None,
    typer.Option(help="Kraken's sub-layers on each rank, such as 3,1, or auto to measure."),
]
_Kraken = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Which kraken and kraken-shared match the size: published, keep-width, "
        "hardware-friendly.",
        show_default=_KRAKEN,
    ),
]
_Sublayers = Annotated[
    int | None,
    typer.Option(
        help="N of kraken, kraken-shared and shared; by default one a rank or group of ranks, and "
        "MODEL's own."
    ),
]
_OutputJson = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers.")]
_Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the latencies.")]
_Trace = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", help="Record a prefill of each model for Perfetto."),
]
_Breakdown = Annotated[
    bool, typer.Option("--breakdown", help="Also measure what a prefill consists of.")
]
_BreakdownPlot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw that; implies --breakdown.")
]


@app.command()
def latency(
    model: _Model = None,
    size: _Size = None,
    wirings: _Wirings = None,
    devices: _Devices = None,
    input_len: _InputLen = 512,
    output_len: _OutputLen = 16,
    batch_size: _BatchSize = 1,
    num_iters: _NumIters = 15,
    num_iters_warmup: _NumItersWarmup = 3,
    dtype: _DType = "auto",
    device: DeviceOption = "auto",
    link: LinkOption = "real",
    emulate_peers: _EmulatePeers = False,
    transport: TransportOption = "auto",
    threads: ThreadsOption = None,
    prefill_chunks: _PrefillChunks = "1",
    placement: _Placement = None,
    tensor_parallel: TensorParallelOption = 1,
    kraken: _Kraken = None,
    sublayers: _Sublayers = None,
    output_json: _OutputJson = None,
    plot: _Plot = None,
    trace: _Trace = None,
    breakdown: _Breakdown = False,
    breakdown_plot: _BreakdownPlot = None,
) -> None:
    """Time the first token and those after it, several architectures on the same ranks."""
    from krakenlm.bench.latency import Setup
    from krakenlm.ranks.placement import parse_placement
    from krakenlm.transport.links import Link

    setup = Setup(
        devices=_number_of(devices),
        input_len=input_len,
        output_len=output_len,
        batch_size=batch_size,
        iterations=num_iters,
        warm_up=num_iters_warmup,
        dtype=dtype,
        device=device,  # type: ignore[arg-type]  # checked with the rest
        link=Link.parse(link),
        emulate_peers=emulate_peers,
        transport=transport,  # type: ignore[arg-type]  # likewise
        threads=threads,
        placement=None if placement is None else parse_placement(placement),
        tensor_parallel=tensor_parallel,
        record=trace is not None,
        breakdown=breakdown or breakdown_plot is not None,
    )
    chosen = _Chosen(model, size, wirings, kraken, sublayers)
    models = _models(chosen, setup, positive_numbers("--prefill-chunks", prefill_chunks))
    _run_latency(models, setup, chosen, _Outputs(output_json, plot, trace, breakdown_plot))


@app.command()
def allreduce(
    devices: _Devices = None,
    dtype: Annotated[
        str, typer.Option(help="Of messages; process groups sum float32 as well.")
    ] = "bfloat16",
    min_bytes: Annotated[str, typer.Option(metavar="BYTES", help="Smallest message.")] = "1K",
    max_bytes: Annotated[
        str, typer.Option(metavar="BYTES", help="Largest message; sizes double up to it.")
    ] = "4M",
    transports: Annotated[
        str,
        typer.Option(
            metavar="all|LIST",
            help="all that work here, or some of shared-memory, sockets, process-group, "
            "symmetric-memory.",
        ),
    ] = "all",
    num_iters: Annotated[int, typer.Option(help="Timed sums of each size.")] = 20,
    device: DeviceOption = "auto",
    link: LinkOption = "real",
    output_json: _OutputJson = None,
) -> None:
    """Time sums over the ranks; the columns are those of nccl-tests."""
    from krakenlm.bench.allreduce import Sweep, parse_bytes, parse_transports
    from krakenlm.transport.links import Link

    sweep = Sweep(
        devices=_number_of(devices),
        dtype=dtype,
        min_bytes=parse_bytes("--min-bytes", min_bytes),
        max_bytes=parse_bytes("--max-bytes", max_bytes),
        transports=parse_transports(transports),
        iterations=num_iters,
        device=device,  # type: ignore[arg-type]  # checked with the rest
        link=Link.parse(link),
        only_what_works=transports == "all",
    )
    _run_allreduce(sweep, output_json)


class _Outputs(NamedTuple):
    """Where results go."""

    json: Path | None
    plot: Path | None
    trace: Path | None
    breakdown_plot: Path | None


class _Chosen(NamedTuple):
    """What is timed, as it was typed."""

    model: Path | None
    size: str | None
    wirings: str | None
    kraken: str | None
    sublayers: int | None

    @property
    def name(self) -> str:
        if self.model is not None:
            return self.model.resolve().name
        return _SIZE if self.size is None else self.size


def _models(chosen: _Chosen, setup: "Setup", prefill_chunks: list[int]) -> "list[Contender]":
    """A size in every wiring, or a saved model and others of its weights."""
    from krakenlm.bench.models import contenders, contenders_of_model

    usual = _sublayers_for(setup)
    if chosen.model is None:
        return contenders(
            chosen.name,
            (_WIRINGS if chosen.wirings is None else chosen.wirings).split(","),
            (_KRAKEN if chosen.kraken is None else chosen.kraken).split(","),
            sublayers=usual if chosen.sublayers is None else chosen.sublayers,
            prefill_chunks=prefill_chunks,
        )
    for option, value in (("--size", chosen.size), ("--kraken", chosen.kraken)):
        if value is not None:
            raise KrakenError(
                f"{option} {value}: {chosen.model} has a size of its own: give one of the two"
            )
    return contenders_of_model(
        chosen.model,
        [] if chosen.wirings is None else chosen.wirings.split(","),
        sublayers=chosen.sublayers,
        usual_sublayers=usual,
        prefill_chunks=prefill_chunks,
    )


def _run_latency(
    models: Sequence["Contender"], setup: "Setup", chosen: _Chosen, outputs: _Outputs
) -> None:
    from krakenlm.bench.latency import check, measure

    check(models, setup)
    _check_pictures(outputs.plot, outputs.breakdown_plot)
    _check_outputs(*outputs)
    prompts = "" if setup.batch_size == 1 else f"{setup.batch_size} prompts of "
    title = f"{chosen.name}: {prompts}{setup.input_len} tokens in, {setup.output_len} out"
    with _progress("timing", setup.rounds) as advance:
        measured = measure(
            models,
            setup,
            title=title,
            command=_command(),
            size=chosen.name if chosen.model is None else None,
            model=chosen.model,
            on_round=advance,
        )
    if measured is not None:
        _show(measured.report)
        _write(measured, outputs)


def _show(report: "LatencyReport") -> None:
    from krakenlm.bench.tables import WIDTH, breakdown_table, latency_table
    from krakenlm.console import console_for_tables

    tables = [latency_table(report)]
    if any(result.breakdown_ms for result in report.results):
        tables.append(breakdown_table(report))
    console = console_for_tables(WIDTH)
    for table in tables:
        console.print(table)


def _write(measured: "Measured", outputs: _Outputs) -> None:
    from krakenlm.bench.chrome_trace import chrome_trace
    from krakenlm.files import write_json

    report, timelines = measured
    if outputs.json is not None:
        write_json(outputs.json, report.to_json())
    if outputs.trace is not None:
        write_json(outputs.trace, chrome_trace(timelines, report))
    if outputs.plot is not None or outputs.breakdown_plot is not None:
        _draw(report, outputs)
    _say_written(*outputs)


def _draw(report: "LatencyReport", outputs: _Outputs) -> None:
    from krakenlm.bench.figures import draw_breakdowns, draw_latencies

    if outputs.plot is not None:
        draw_latencies(report, outputs.plot)
    if outputs.breakdown_plot is not None:
        draw_breakdowns(report, outputs.breakdown_plot)


def _run_allreduce(sweep: "Sweep", output_json: Path | None) -> None:
    from krakenlm.bench.allreduce import measure_allreduce, nccl_table
    from krakenlm.console import print_note, results
    from krakenlm.files import write_json

    _check_outputs(output_json)
    report = measure_allreduce(sweep, command=_command(), on_note=print_note)
    if report is None:
        return
    results.print(nccl_table(report), markup=False)
    if output_json is not None:
        write_json(output_json, report.to_json())
    _say_written(output_json)


def _number_of(devices: int | None) -> int:
    from krakenlm.ranks.launch import under_torchrun, world_size

    if devices is not None:
        return devices
    return world_size() if under_torchrun() else 2


def _sublayers_for(setup: "Setup") -> int:
    """One a group of ranks, but two at least; or as many as the placement has."""
    if isinstance(setup.placement, tuple):
        return sum(setup.placement)
    return max(2, setup.devices // max(setup.tensor_parallel, 1))


def _check_pictures(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.suffix.lower() != ".png":
            raise KrakenError(f"cannot draw {path}: pictures are PNG: give it the ending .png")


class _TriedError(Exception):
    """A file could be written."""


def _check_outputs(*paths: Path | None) -> None:
    """Refuse what cannot be written before time is spent on measuring."""
    from krakenlm.files import whole_file
    from krakenlm.ranks.launch import is_first_process

    for path in paths:
        if path is None or not is_first_process():
            continue
        if path.is_dir():
            raise KrakenError(f"cannot write {path}: it is a folder: name a file in it")
        with contextlib.suppress(_TriedError), whole_file(path):
            raise _TriedError


def _say_written(*paths: Path | None) -> None:
    from krakenlm.console import notes

    for path in paths:
        if path is not None:
            notes.print(f"wrote {path}", markup=False)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    from krakenlm.ranks.launch import is_first_process

    if not is_first_process():
        yield lambda: None
        return
    from krakenlm.console import progress_bar

    with progress_bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _command() -> list[str]:
    return ["krakenlm", *sys.argv[1:]]
