"""Options that mean the same in every command that runs on several devices."""

from typing import Annotated

import typer

DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
LinkOption = Annotated[
    str, typer.Option(help="real, or a link to emulate, such as gbps=1,latency_us=50.")
]
TransportOption = Annotated[
    str,
    typer.Option(
        help="What carries messages: auto, shared-memory, sockets, process-group (gloo, NCCL) or "
        "symmetric-memory (GPUs)."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="Compute threads of each process; by default one for each of its cores."),
]
TensorParallelOption = Annotated[
    int, typer.Option(help="Devices that share each Kraken sub-layer.")
]
