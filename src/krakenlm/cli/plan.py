"""``krakenlm plan``: which wiring on which devices, before anything is trained."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from krakenlm.cli.options import COMPARED_WIRINGS, TensorParallelOption, positive_numbers
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.config import ModelConfig
    from krakenlm.plan.candidates import Wish
    from krakenlm.plan.device import DeviceProfile
    from krakenlm.plan.planner import Setup
    from krakenlm.plan.report import PlanReport

_DEVICES = "2,4,8"
_KRAKEN = "hardware-friendly,keep-width,gqa,mqa"
_DEVICE = "a100-80gb"
_INPUT_LENS = (128, 2048)

_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A size (124M, 6.7B, ...), the folder of a model, or its config.json.",
    ),
]
_Devices = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Numbers of devices.", show_default=_DEVICES),
]
_Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What each of them is: a100-40gb, a100-80gb, h100, h200, l40s, rtx4090, cpu-core.",
        show_default=_DEVICE,
    ),
]
_Link = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|ALPHA,BETA",
        help="What is between them: nvswitch-a100, nvswitch-h100, pcie4, pcie5, 100gbe, 25gbe, "
        "10gbe, 1gbe, 100mbit; or microseconds and Gbit/s by hand.",
        show_default="the device's usual one",
    ),
]
_AllReduce = Annotated[
    str | None,
    typer.Option(
        metavar="KERNEL",
        help="How sums are made over that link: nccl, one-shot, multimem, sockets, or fastest.",
        show_default="the link's usual one",
    ),
]
_Profile = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.toml",
        help="A device, a link or a machine with both, of your own; may be given twice.",
    ),
]
_InputLen = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Tokens of a prompt.",
        show_default="128,2048, or what the model's context holds",
    ),
]
_OutputLen = Annotated[int, typer.Option(help="Tokens to generate; 1 is the first token only.")]
_BatchSize = Annotated[int, typer.Option(help="Prompts at once.")]
_DType = Annotated[
    str | None,
    typer.Option(
        help="float16, bfloat16 or float32.",
        show_default="float16, bfloat16 on CPUs, or a profile's own",
    ),
]
_Wirings = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="As in `krakenlm bench latency`: shared/2:16-29.",
        show_default=COMPARED_WIRINGS,
    ),
]
_Kraken = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Which kraken match the size: published, keep-width, hardware-friendly, gqa, mqa.",
    ),
]
_Sublayers = Annotated[
    int | None,
    typer.Option(
        help="N of kraken, kraken-shared and shared; by default one a device or group of devices."
    ),
]
_PrefillChunks = Annotated[
    str,
    typer.Option(metavar="LIST", help="Parts of a prompt that hide one another's AllReduces."),
]
_GraphPrefill = Annotated[
    bool,
    typer.Option(
        "--graph-prefill",
        help="Prompts run as a CUDA graph too, as in `krakenlm bench latency --graph-prefill`.",
    ),
]
_Parts = Annotated[bool, typer.Option("--parts", help="Also show what a prefill consists of.")]
_Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw TTFT over prompt length, link and devices."),
]
_Timeline = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw the first layers' schedule.")
]
_Memory = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw weights and KV cache over the context."),
]
_Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers.")]
_PaperGrid = Annotated[
    bool,
    typer.Option(
        "--paper-grid", help="Plan the grid of Kraken's paper instead, and Ladder's machine."
    ),
]


class _Pictures(NamedTuple):
    """Where they go."""

    plot: Path | None
    timeline: Path | None
    memory: Path | None


def plan(
    model: _Model = None,
    devices: _Devices = None,
    device: _Device = None,
    link: _Link = None,
    allreduce: _AllReduce = None,
    profile: _Profile = None,
    input_len: _InputLen = None,
    output_len: _OutputLen = 16,
    batch_size: _BatchSize = 1,
    dtype: _DType = None,
    wirings: _Wirings = None,
    kraken: _Kraken = _KRAKEN,
    sublayers: _Sublayers = None,
    tensor_parallel: TensorParallelOption = 1,
    prefill_chunks: _PrefillChunks = "1",
    graph_prefill: _GraphPrefill = False,
    parts: _Parts = False,
    plot: _Plot = None,
    timeline: _Timeline = None,
    memory: _Memory = None,
    json: _Json = None,
    paper_grid: _PaperGrid = False,
) -> None:
    """Say how fast a model would be in each wiring, on devices that need not be there."""
    if paper_grid:
        _refuse_with_grid(model, devices, device, link, profile, plot, timeline, memory)
        _run_grid(allreduce, json)
        return
    if model is None:
        raise KrakenError("which model? Give a size or a folder, or --paper-grid")
    pictures = _Pictures(plot, timeline, memory)
    _check_pictures(pictures)
    counts = positive_numbers("--devices", _DEVICES if devices is None else devices)
    from krakenlm.plan.candidates import read_shape
    from krakenlm.plan.report import plan_all

    shape = read_shape(model)
    lengths = _lengths(shape, output_len, input_len)
    chunks = positive_numbers("--prefill-chunks", prefill_chunks)
    wish = _wish(shape, wirings, kraken, sublayers, tensor_parallel, chunks)
    numbers = {
        "batch_size": batch_size,
        "output_len": output_len,
        "tensor_parallel": tensor_parallel,
        "graph_prefill": graph_prefill,
    }
    setup = _setup(_Chosen(device, link, allreduce, tuple(profile or ())), dtype, numbers)
    title = model if batch_size == 1 else f"{model}, {batch_size} prompts at once"
    with _written(json) as write:
        report = plan_all(
            shape, wish, counts, lengths, setup, title=title, strict=devices is not None
        )
        _show(report, parts)
        _draw(shape, wish, counts, report, pictures)
        write(report.to_json())
    _say_written(*pictures, json)


def _wish(
    shape: "ModelConfig",
    wirings: str | None,
    kraken: str,
    sublayers: int | None,
    tensor_parallel: int,
    chunks: list[int],
) -> "Wish":
    from krakenlm.bench.models import parse_wirings
    from krakenlm.plan.candidates import Wish, check_krakens, those_that_fit

    wanted = parse_wirings((COMPARED_WIRINGS if wirings is None else wirings).split(","))
    return Wish(
        wirings=tuple(wanted if wirings is not None else those_that_fit(shape, wanted)),
        krakens=check_krakens(kraken.split(",")),
        sublayers=sublayers,
        tensor_parallel=tensor_parallel,
        prefill_chunks=tuple(chunks),
    )


def _lengths(shape: "ModelConfig", output_len: int, text: str | None) -> list[int]:
    from krakenlm.engine.requests import room_for_answer

    if text is not None:
        return positive_numbers("--input-len", text)
    longest = max(room_for_answer(shape, output_len), 1)
    return sorted({min(length, longest) for length in _INPUT_LENS})


class _Chosen(NamedTuple):
    """Device and link, as they were typed."""

    device: str | None
    link: str | None
    kernel: str | None
    profiles: tuple[Path, ...]


def _setup(chosen: _Chosen, dtype: str | None, numbers: dict[str, int]) -> "Setup":
    from krakenlm.plan.device import DeviceProfile
    from krakenlm.plan.link import LinkProfile
    from krakenlm.plan.planner import Setup
    from krakenlm.plan.profile_files import read_profiles

    own = read_profiles(chosen.profiles)
    for kind, option, value in (
        ("device", "--device", chosen.device),
        ("link", "--link", chosen.link),
    ):
        if kind in own and value is not None:
            raise KrakenError(f"{option} {value}: --profile gives a {kind} already: leave one out")
    device = own.get("device") or DeviceProfile.named(chosen.device or _DEVICE)
    assert isinstance(device, DeviceProfile)
    link = own.get("link") or LinkProfile.named(chosen.link or device.usual_link)
    assert isinstance(link, LinkProfile)
    if dtype is None:
        dtype = _usual_dtype(device)
    setup = Setup(device=device, link=link, kernel=chosen.kernel, dtype=dtype, **numbers)  # type: ignore[arg-type]
    device.costs(dtype)
    link.sums(chosen.kernel, on_cpu=False)
    return setup


def _usual_dtype(device: "DeviceProfile") -> str:
    """bfloat16 on CPUs and float16 elsewhere, or what the profile has instead."""
    usual = "bfloat16" if device.processor == "cpu" else "float16"
    known = device.peak_tflop_per_second
    return usual if usual in known or not known else next(iter(known))


def _show(report: "PlanReport", parts: bool) -> None:
    from krakenlm.console import console_for_tables, print_note
    from krakenlm.plan.report import choose
    from krakenlm.plan.tables import WIDTH, parts_table, plan_table

    console = console_for_tables(WIDTH)
    for input_len in report.input_lens:
        console.print(plan_table(report, input_len))
        if parts:
            console.print(parts_table(report, input_len))
        choice = choose(report, input_len)
        on = f" on {choice.devices} device{'s' if choice.devices > 1 else ''}"
        console.print(
            f"choice for {input_len} tokens: {choice.model}{on if choice.model else ''}: "
            f"{choice.why}\n",
            markup=False,
            soft_wrap=True,
        )
    for reason in report.left_out:
        print_note(f"left out: {reason}")


def _draw(
    shape: "ModelConfig",
    wish: "Wish",
    devices: list[int],
    report: "PlanReport",
    pictures: _Pictures,
) -> None:
    if not any(pictures):
        return
    from krakenlm.bench.figures import draw_timelines
    from krakenlm.plan.figures import Curves, draw_curves, draw_memory
    from krakenlm.plan.sweeps import memory_curves, over_degrees, over_lengths, over_links

    setup, most, longest = report.setup, max(devices), max(report.input_lens)
    title = f"{report.title}; {setup.device.title}; {setup.link.title}; {setup.dtype}"
    last = [p for p in report.of_length(longest) if p.devices == most and p.prefill_chunks == 1]
    if pictures.timeline is not None:
        timelines = {p.label: p.prefill.events() for p in last}
        draw_timelines(timelines, pictures.timeline, what=f"a planned pass; {title}")
    if pictures.memory is not None:
        draw_memory(
            memory_curves(shape, devices, setup), setup.device.usable_bytes, title, pictures.memory
        )
    if pictures.plot is not None:
        from krakenlm.bench.models import Contender

        models = [Contender(config=p.config, label=p.label, variant=p.variant) for p in last]
        lengths = Curves(
            f"tokens of the prompt, {most} devices", *over_lengths(models, most, setup)
        )
        links = Curves(
            f"Gbit/s of the link (10 us), {most} devices, {longest} tokens",
            *over_links(models, most, longest, setup),
        )
        degrees = Curves(
            f"devices, {longest} tokens", *over_degrees(shape, wish, devices, longest, setup)
        )
        draw_curves([lengths, links, degrees], title, pictures.plot)


def _run_grid(kernel: str | None, json: Path | None) -> None:
    from krakenlm.console import console_for_tables
    from krakenlm.plan.grid_tables import explanations, grid_tables
    from krakenlm.plan.paper_grid import plan_paper_grid
    from krakenlm.plan.tables import WIDTH

    with _written(json) as write:
        grid = plan_paper_grid(kernel)
        console = console_for_tables(WIDTH)
        for table in grid_tables(grid):
            console.print(table)
        for line in explanations(grid):
            console.print(line, markup=False, soft_wrap=True)
        write(grid.to_json())
    _say_written(json)


def _refuse_with_grid(*given: object) -> None:
    names = (
        "MODEL",
        "--devices",
        "--device",
        "--link",
        "--profile",
        "--plot",
        "--timeline",
        "--memory",
    )
    for name, value in zip(names, given, strict=True):
        if value:
            raise KrakenError(f"--paper-grid has models and a machine of its own: leave {name} out")


def _written(target: Path | None) -> AbstractContextManager[Callable[[Any], object]]:
    from krakenlm.files import json_file

    return json_file(target)


def _check_pictures(pictures: _Pictures) -> None:
    for path in pictures:
        if path is not None and path.suffix.lower() != ".png":
            raise KrakenError(f"cannot draw {path}: pictures are PNG: give it the ending .png")
        if path is not None and path.is_dir():
            raise KrakenError(f"cannot write {path}: it is a folder: name a file in it")


def _say_written(*paths: Path | None) -> None:
    from krakenlm.console import notes

    for path in paths:
        if path is not None:
            notes.print(f"wrote {path}", markup=False)
