"""``krakenlm calibrate``: measure this machine, as a profile for ``krakenlm plan``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.cli.options import DeviceOption, LinkOption, ThreadsOption, TransportOption
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from krakenlm.calibrate.budget import Elapsed
    from krakenlm.calibrate.run import Calibrated

_Output = Annotated[
    Path, typer.Argument(metavar="OUT.toml", help="The profile: it is written whole or not at all.")
]
_Devices = Annotated[
    int | None,
    typer.Option(
        help="Ranks, which all work at once; by default one for each GPU, or 2 on CPUs, and under "
        "torchrun its own number.",
        show_default="2, or all GPUs",
    ),
]
_DType = Annotated[
    str,
    typer.Option(help="auto (bfloat16 where the device has it), float32, bfloat16, float16."),
]
_Time = Annotated[float, typer.Option(metavar="SECONDS", help="That measuring may take.")]


def calibrate(
    output: _Output,
    devices: _Devices = None,
    dtype: _DType = "auto",
    device: DeviceOption = "auto",
    link: LinkOption = "real",
    transport: TransportOption = "auto",
    threads: ThreadsOption = None,
    time: _Time = 150.0,
) -> None:
    """Measure this machine, and write a profile that `krakenlm plan` reads."""
    if output.suffix.lower() != ".toml":
        raise KrakenError(f"cannot write {output}: profiles are TOML: give it the ending .toml")
    if output.is_dir():
        raise KrakenError(f"cannot write {output}: it is a folder: name a file in it")
    from krakenlm.calibrate.run import Options
    from krakenlm.calibrate.run import calibrate as measure
    from krakenlm.ranks.devices import check_device
    from krakenlm.transport.links import Link

    check_device(device)
    options = Options(
        devices=_number_of(devices, device),
        dtype=dtype,
        device=device,  # type: ignore[arg-type]  # checked above
        link=Link.parse(link),
        transport=transport,  # type: ignore[arg-type]  # the options check it
        threads=threads,
        seconds=time,
    )
    options.check()
    with _written(output) as write, _progress(time) as advance:
        found = measure(options, advance)
        write(found)
    if found is not None:
        _show(output, found)


def _number_of(devices: int | None, device: str) -> int:
    from krakenlm.ranks.launch import under_torchrun, world_size

    if devices is not None:
        return devices
    if under_torchrun():
        return world_size()
    import torch

    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if gpus:
        return gpus
    from krakenlm.environment import cores_here

    return min(2, len(cores_here()))


@contextmanager
def _written(target: Path) -> "Iterator[Callable[[Calibrated | None], None]]":
    """What writes the profile; that it can be written is known before time is spent on it."""
    from krakenlm.files import whole_file
    from krakenlm.plan.profile_files import write_machine
    from krakenlm.ranks.launch import is_first_process

    if not is_first_process():
        yield lambda _: None
        return
    with whole_file(target) as partial:

        def write(found: "Calibrated | None") -> None:
            assert found is not None, "the first process hears what the ranks found"
            write_machine(partial, found.device, found.link)

        yield write


@contextmanager
def _progress(seconds: float) -> "Iterator[Callable[[Elapsed], None]]":
    from krakenlm.console import progress_bar
    from krakenlm.ranks.launch import is_first_process

    if not is_first_process():
        yield lambda _: None
        return
    with progress_bar() as bar:
        task = bar.add_task("starting", total=round(seconds))
        yield lambda elapsed: bar.update(
            task,
            description=elapsed.what,
            completed=min(int(elapsed.seconds), round(seconds)),
        )


def _show(output: Path, found: "Calibrated") -> None:
    from krakenlm.console import notes, results

    device, link, measured = found
    (dtype, peak), *_ = device.peak_tflop_per_second.items()
    lines = [
        f"{measured.machine.in_words}",
        f"products reach {peak.value:.3g} TFLOP/s in {dtype}, memory "
        f"{device.bandwidth_gb_per_second.value:.3g} GB/s",
    ]
    if link is not None:
        sums = link.sums(None, on_cpu=device.processor == "cpu")
        ranks = measured.machine.ranks
        times = [
            f"{n >> 10} KiB in {sums(n, ranks).alone * 1e6:.0f} us" for n in (1 << 10, 1 << 20)
        ]
        lines.append(f"{link.title}, sums over {ranks} ranks: {', '.join(times)}")
    for line in lines:
        results.print(line, markup=False)
    notes.print(f"wrote {output}", markup=False)
    notes.print(f"plan with it: krakenlm plan 124M --profile {output}", markup=False)
