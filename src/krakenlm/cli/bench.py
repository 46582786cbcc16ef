"""``krakenlm bench latency``: models against each other, on the same ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from krakenlm.cli.bench_outputs import (
    check_outputs,
    check_pictures,
    command,
    number_of,
    progress,
    say_written,
)
from krakenlm.cli.options import (
    COMPARED_WIRINGS,
    DeviceOption,
    OutputJsonOption,
    RanksOption,
    TensorParallelOption,
    ThreadsOption,
    TransportOption,
    positive_numbers,
)
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.bench.latency import Measured, Setup
    from krakenlm.bench.models import Contender
    from krakenlm.bench.results import LatencyReport

app = typer.Typer(
    name="bench", help="Measure latency, and the sums over ranks beneath it.", no_args_is_help=True
)

_SIZE = "124M"
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
        show_default=COMPARED_WIRINGS,
    ),
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
_Link = Annotated[
    str,
    typer.Option(
        metavar="real|LINK|NAME",
        help="real, a link to emulate, such as gbps=1,latency_us=50, or one of the planner's: "
        "nvswitch-a100, nvswitch-h100, pcie4, pcie5, 100gbe, ...",
    ),
]
_AllReduce = Annotated[
    str | None,
    typer.Option(
        metavar="KERNEL",
        help="How sums are made over one of the planner's links: nccl, one-shot, multimem, "
        "sockets, or fastest.",
        show_default="the link's usual one",
    ),
]
_GraphPrefill = Annotated[
    bool,
    typer.Option(
        "--graph-prefill", help="Replay captured passes for prompts too, on GPUs as CUDA graphs."
    ),
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
    devices: RanksOption = None,
    input_len: _InputLen = 512,
    output_len: _OutputLen = 16,
    batch_size: _BatchSize = 1,
    num_iters: _NumIters = 15,
    num_iters_warmup: _NumItersWarmup = 3,
    dtype: _DType = "auto",
    device: DeviceOption = "auto",
    link: _Link = "real",
    allreduce: _AllReduce = None,
    emulate_peers: _EmulatePeers = False,
    graph_prefill: _GraphPrefill = False,
    transport: TransportOption = "auto",
    threads: ThreadsOption = None,
    prefill_chunks: _PrefillChunks = "1",
    placement: _Placement = None,
    tensor_parallel: TensorParallelOption = 1,
    kraken: _Kraken = None,
    sublayers: _Sublayers = None,
    output_json: OutputJsonOption = None,
    plot: _Plot = None,
    trace: _Trace = None,
    breakdown: _Breakdown = False,
    breakdown_plot: _BreakdownPlot = None,
) -> None:
    """Time the first token and those after it, several architectures on the same ranks."""
    from krakenlm.bench.latency import Setup
    from krakenlm.emulation.profile_link import read_link
    from krakenlm.ranks.placement import parse_placement

    setup = Setup(
        devices=number_of(devices),
        input_len=input_len,
        output_len=output_len,
        batch_size=batch_size,
        iterations=num_iters,
        warm_up=num_iters_warmup,
        dtype=dtype,
        device=device,  # type: ignore[arg-type]  # checked with the rest
        link=read_link(link, allreduce),
        emulate_peers=emulate_peers,
        graph_prefill=graph_prefill,
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
            (COMPARED_WIRINGS if chosen.wirings is None else chosen.wirings).split(","),
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
    check_pictures(outputs.plot, outputs.breakdown_plot)
    check_outputs(*outputs)
    if setup.emulate_peers:
        _say_what_it_needs(models, setup)
    prompts = "" if setup.batch_size == 1 else f"{setup.batch_size} prompts of "
    title = f"{chosen.name}: {prompts}{setup.input_len} tokens in, {setup.output_len} out"
    if setup.emulate_peers:
        title += ", emulated"
    with progress("timing", setup.rounds) as advance:
        measured = measure(
            models,
            setup,
            title=title,
            command=command(),
            size=chosen.name if chosen.model is None else None,
            model=chosen.model,
            on_round=advance,
        )
    if measured is not None:
        _show(measured.report)
        _write(measured, outputs)


def _say_what_it_needs(models: Sequence["Contender"], setup: "Setup") -> None:
    from krakenlm.console import print_note
    from krakenlm.emulation.footprint import check_fits

    print_note(check_fits(models, setup))


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
    say_written(*outputs)


def _draw(report: "LatencyReport", outputs: _Outputs) -> None:
    from krakenlm.bench.figures import draw_breakdowns, draw_latencies

    if outputs.plot is not None:
        draw_latencies(report, outputs.plot)
    if outputs.breakdown_plot is not None:
        draw_breakdowns(report, outputs.breakdown_plot)


def _sublayers_for(setup: "Setup") -> int:
    """One a group of ranks, but two at least; or as many as the placement has."""
    if isinstance(setup.placement, tuple):
        return sum(setup.placement)
    return max(2, setup.devices // max(setup.tensor_parallel, 1))
