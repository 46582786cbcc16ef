"""``krakenlm bench allreduce``: sums over ranks by themselves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.cli.bench_outputs import check_outputs, command, number_of, say_written
from krakenlm.cli.options import DeviceOption, LinkOption, OutputJsonOption, RanksOption

if TYPE_CHECKING:
    from krakenlm.bench.allreduce import Sweep


def allreduce(
    devices: RanksOption = None,
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
    output_json: OutputJsonOption = None,
) -> None:
    """Time sums over the ranks; the columns are those of nccl-tests."""
    from krakenlm.bench.allreduce import Sweep, parse_bytes, parse_transports
    from krakenlm.transport.links import Link

    sweep = Sweep(
        devices=number_of(devices),
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


def _run_allreduce(sweep: "Sweep", output_json: Path | None) -> None:
    from krakenlm.bench.allreduce import measure_allreduce, nccl_table
    from krakenlm.console import print_note, results
    from krakenlm.files import write_json

    check_outputs(output_json)
    report = measure_allreduce(sweep, command=command(), on_note=print_note)
    if report is None:
        return
    results.print(nccl_table(report), markup=False)
    if output_json is not None:
        write_json(output_json, report.to_json())
    say_written(output_json)
