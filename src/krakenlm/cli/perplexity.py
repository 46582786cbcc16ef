"""``krakenlm perplexity``: how well a model predicts a text."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer


def perplexity(
    model: Annotated[Path, typer.Argument(help="A model directory.", show_default=False)],
    data: Annotated[
        Path, typer.Argument(help="A prepared directory or a text file.", show_default=False)
    ],
    split: Annotated[
        str, typer.Option(help="Which part of a prepared directory: train or validation.")
    ] = "validation",
    batch_size: Annotated[int, typer.Option(help="Windows computed at once.")] = 4,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens a window spans.", show_default="the model's context length"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the numbers as JSON.", show_default=False),
    ] = None,
) -> None:
    """Report loss, perplexity and bits per byte of a model on a text."""
    from rich.table import Table

    from krakenlm.console import results
    from krakenlm.eval.perplexity import perplexity as measure
    from krakenlm.files import as_json, whole_file

    with ExitStack() as stack:
        # Where the file cannot be written is said before the measurement, not after it.
        file = None if json is None else stack.enter_context(whole_file(json))
        result = measure(
            model, data, batch_size=batch_size, device=device, window=window, split=split
        )
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_row("loss", f"{result.loss:.4f}", "nats per token")
        table.add_row("perplexity", f"{result.perplexity:.2f}", "per token")
        table.add_row("bits per byte", f"{result.bits_per_byte:.4f}", "")
        table.add_row("tokens", f"{result.tokens:,}", f"predicted in windows of {result.window}")
        table.add_row("bytes", f"{result.bytes:,}", "of UTF-8 text")
        results.print(table)  # before the file: a disk that is full by now costs no measurement
        if file is not None:
            values = {"model": str(model), "data": str(data), **result.to_json()}
            file.write_text(as_json(values), encoding="utf-8")
