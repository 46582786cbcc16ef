"""``krakenlm bench paper-grid``: the paper's experiment on one device that stands for several."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.cli.bench_outputs import command, progress, say_written
from krakenlm.cli.options import DeviceOption, positive_numbers
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.emulation.cases import Grid
    from krakenlm.emulation.machine import Machine
    from krakenlm.emulation.measuring import Effort

_SIZES = "1.3B,6.7B,13B,65B,175B"
_WIRINGS = "kraken,parallel,ladder,shared,lagged,lagged-layer"

_Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="For paper-grid.json, paper-grid.png and a file a case; what is there is kept.",
    ),
]
_Sizes = Annotated[str, typer.Option(metavar="LIST", help="Standard shapes.")]
_Devices = Annotated[
    str, typer.Option(metavar="LIST", help="Numbers of devices that one stands for.")
]
_InputLen = Annotated[str, typer.Option(metavar="LIST", help="Tokens of a prompt.")]
_Wirings = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Measured beside the standard model, all cells of one before the next, as in "
        "`krakenlm bench latency`. Kraken is hardware-friendly.",
    ),
]
_Scale = Annotated[
    str,
    typer.Option(
        metavar="full|tiny|N",
        help="Divide widths, layers, vocabulary and prompts by N; tiny is 64, for CPUs.",
    ),
]
_Link = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|ALPHA,BETA",
        help="The link to the devices that are not there, as `krakenlm plan` takes it.",
        show_default="the device's usual one",
    ),
]
_AllReduce = Annotated[
    str,
    typer.Option(
        metavar="KERNEL",
        help="How sums are made over that link: nccl, one-shot, multimem, sockets; fastest takes "
        "the quickest for each message, as in `krakenlm plan --paper-grid`.",
    ),
]
_Profile = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.toml",
        help="What the planner knows of this device, from `krakenlm calibrate`; by default a "
        "profile that it has of such a device.",
    ),
]
_DType = Annotated[
    str,
    typer.Option(
        help="float16, bfloat16, float32; auto: float16 on GPUs, or what the profile has."
    ),
]
_NumIters = Annotated[int, typer.Option(help="Rounds that count; each runs both models once.")]
_NumItersWarmup = Annotated[int, typer.Option(help="Rounds before them.")]
_TimeLimit = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Begin no case that would not end by then.", show_default="none"
    ),
]
_Threads = Annotated[int, typer.Option(help="Compute threads, on a CPU.")]


def paper_grid(
    folder: _Folder,
    sizes: _Sizes = _SIZES,
    devices: _Devices = "4,8",
    input_len: _InputLen = "128,2048",
    wirings: _Wirings = _WIRINGS,
    scale: _Scale = "full",
    device: DeviceOption = "auto",
    link: _Link = None,
    allreduce: _AllReduce = "fastest",
    profile: _Profile = None,
    dtype: _DType = "auto",
    num_iters: _NumIters = 5,
    num_iters_warmup: _NumItersWarmup = 2,
    time_limit: _TimeLimit = None,
    threads: _Threads = 1,
) -> None:
    """Time the paper's grid with the kernels of one rank, and the planner beside it.

    One device runs one rank's part of each model. The others' sums come when the link would have
    brought them. The same command goes on where it was cut short.
    """
    from krakenlm.emulation.cases import Grid, read_scale
    from krakenlm.emulation.machine import machine_at
    from krakenlm.emulation.measuring import Effort
    from krakenlm.plan.profile_files import read_profiles

    grid = Grid(
        sizes=tuple(sizes.split(",")),
        devices=tuple(positive_numbers("--devices", devices)),
        input_lens=tuple(positive_numbers("--input-len", input_len)),
        wirings=tuple(wirings.split(",")),
        scale=read_scale(scale),
    )
    if time_limit is not None and not 0 < time_limit < float("inf"):
        raise KrakenError(f"--time-limit {time_limit:g}: needs more than 0 seconds")
    effort = Effort(
        iterations=num_iters, warm_up=num_iters_warmup, threads=threads, seconds=time_limit
    )
    machine = machine_at(
        device, read_profiles(tuple(profile or ())), link=link, kernel=allreduce, dtype=dtype
    )
    _run(folder, grid, machine, effort)


def _run(folder: Path, grid: "Grid", machine: "Machine", effort: "Effort") -> None:
    from krakenlm.console import console_for_tables, print_note
    from krakenlm.emulation import PICTURE, SUMMARY
    from krakenlm.emulation.run import check_run, run_grid
    from krakenlm.emulation.tables import grid_table, remarks
    from krakenlm.plan.tables import WIDTH

    check_run(grid, machine, effort)
    with progress("measuring", len(grid.cases())) as advance:
        report = run_grid(folder, grid, machine, effort, on_case=advance, command=command())

    console_for_tables(WIDTH).print(grid_table(report))
    for line in remarks(report):
        print_note(line)
    say_written(*(p for p in (folder / SUMMARY, folder / PICTURE) if p.is_file()))
