"""``krakenlm perplexity``: how well a model predicts a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.cli.options import OneDeviceOption, OtherTokenizerOption

if TYPE_CHECKING:
    from rich.table import Table

    from krakenlm.eval.perplexity import PerplexityResult


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
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens from one window's beginning to the next one's; less gives more context "
            "and takes longer.",
            show_default="one less than the window",
        ),
    ] = None,
    per_document: Annotated[
        bool,
        typer.Option(
            "--per-document",
            help="Take documents one by one; otherwise windows reach over their ends.",
        ),
    ] = False,
    other_tokenizer: OtherTokenizerOption = False,
    device: OneDeviceOption = "auto",
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the numbers as JSON.", show_default=False),
    ] = None,
) -> None:
    """Report loss, perplexity and bits per byte of a model on a text."""
    from krakenlm.console import results
    from krakenlm.eval.perplexity import perplexity as measure
    from krakenlm.files import json_file

    with json_file(json) as write:
        result = measure(
            model,
            data,
            batch_size=batch_size,
            device=device,
            window=window,
            stride=stride,
            per_document=per_document,
            split=split,
            other_tokenizer=other_tokenizer,
        )
        results.print(_table(result))  # before the file: a full disk costs no measurement
        write({"model": str(model), "data": str(data), **result.to_json()})


def _table(result: "PerplexityResult") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    how = "document by document" if result.per_document else "documents one after the other"
    table.add_row("loss", f"{result.loss:.4f}", "nats per token")
    table.add_row("perplexity", f"{result.perplexity:.2f}", "per token")
    table.add_row("bits per byte", f"{result.bits_per_byte:.4f}", "")
    windows = f"predicted in windows of {result.window}, {result.stride} apart, {how}"
    table.add_row("tokens", f"{result.tokens:,}", windows)
    table.add_row("bytes", f"{result.bytes:,}", "of UTF-8 text")
    return table
