"""Options that mean the same in several commands."""

from typing import Annotated

import typer

DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
"""Of each of several ranks, which find their own GPU."""
OneDeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
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
