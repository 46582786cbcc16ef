"""Arguments and options that mean the same in several commands."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.errors import KrakenError

COMPARED_WIRINGS = "standard,parallel,ladder,kraken,shared,lagged,lagged-layer"
"""What commands that compare wirings do so with, unless they are told."""

ServedModelArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a saved model with a tokenizer.")
]
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
TimeoutOption = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="End when a process gives no sign of life for so long; 0 waits on. One that computes "
        "for long gives them all the while.",
    ),
]
TensorParallelOption = Annotated[int, typer.Option(help="Devices that share each sub-layer.")]
SublayersOption = Annotated[
    int | None,
    typer.Option(
        help="Run a shared model, whose N is a choice, as so many sub-layers.",
        show_default="the model's own",
    ),
]
OtherTokenizerOption = Annotated[
    bool,
    typer.Option(
        "--other-tokenizer", help="Go on where the data's tokens were made by another tokenizer."
    ),
]

RanksOption = Annotated[
    int | None,
    typer.Option(help="Ranks; by default 2, under torchrun its own number.", show_default="2"),
]
OutputJsonOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers.")]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check", help="First read all weights, and refuse those that are NaN or infinite."
    ),
]


def check_if(check: bool, model: Path, *, called: Path | None = None) -> None:
    """What ``--check`` asks for.

    Args:
        check: whether it was given.
        model: folder of the weights.
        called: what complaints call it, where the folder is gone by then.

    Raises:
        KrakenError: some weights are not finite, or cannot be read.
    """
    if check:
        from krakenlm.model.soundness import check_weights

        check_weights(model, called=called)


def positive_numbers(name: str, text: str) -> list[int]:
    """The value of an option that takes one number or several with commas between.

    Raises:
        KrakenError: something else, or a number below 1.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise KrakenError(
            f"{name} {text}: give a number of 1 or more, or several with commas between"
        )
    return numbers
