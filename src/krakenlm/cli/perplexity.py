"""``krakenlm perplexity``: how well a model predicts a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krakenlm.cli.options import (
    CheckOption,
    OneDeviceOption,
    OtherTokenizerOption,
    check_if,
    positive_numbers,
)

if TYPE_CHECKING:
    from rich.table import Table

    from krakenlm.eval.perplexity import PerplexityResult

_Sublayers = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Run a shared model, whose N is a choice, as so many sub-layers; several numbers "
        "give a table of what each costs.",
        show_default="the model's own",
    ),
]


_Model = Annotated[Path, typer.Argument(help="A model directory.", show_default=False)]
_Data = Annotated[
    Path, typer.Argument(help="A prepared directory or a text file.", show_default=False)
]
_Split = Annotated[
    str, typer.Option(help="Which part of a prepared directory: train or validation.")
]
_BatchSize = Annotated[int, typer.Option(help="Windows computed at once.")]
_Window = Annotated[
    int | None,
    typer.Option(help="Tokens a window spans.", show_default="the model's context length"),
]
_Stride = Annotated[
    int | None,
    typer.Option(
        help="Tokens from one window's beginning to the next one's; less gives more context "
        "and takes longer.",
        show_default="one less than the window",
    ),
]
_PerDocument = Annotated[
    bool,
    typer.Option(
        "--per-document",
        help="Take documents one by one; otherwise windows reach over their ends.",
    ),
]
_Json = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write the numbers as JSON.", show_default=False),
]


def perplexity(
    model: _Model,
    data: _Data,
    split: _Split = "validation",
    batch_size: _BatchSize = 4,
    window: _Window = None,
    stride: _Stride = None,
    per_document: _PerDocument = False,
    sublayers: _Sublayers = None,
    other_tokenizer: OtherTokenizerOption = False,
    device: OneDeviceOption = "auto",
    json: _Json = None,
    check: CheckOption = False,
) -> None:
    """Report loss, perplexity and bits per byte of a model on a text."""
    from krakenlm.console import results
    from krakenlm.files import json_file

    check_if(check, model)
    chosen = [] if sublayers is None else positive_numbers("--sublayers", sublayers)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "device": device,
        "window": window,
        "stride": stride,
        "per_document": per_document,
        "split": split,
        "other_tokenizer": other_tokenizer,
    }
    measure = _one_by_one if len(chosen) > 1 else _one
    with json_file(json) as write:
        table, values = measure(model, data, chosen, settings)
        results.print(table)  # before the file: a full disk costs no measurement
        write({"model": str(model), "data": str(data), **values})


def _one(
    model: Path, data: Path, sublayers: list[int], settings: dict[str, Any]
) -> "tuple[Table, dict[str, Any]]":
    """A table of one result, and its JSON."""
    from krakenlm.eval.perplexity import perplexity as measure

    chosen: dict[str, Any] = {"sublayers": sublayers[0]} if sublayers else {}
    result = measure(model, data, **chosen, **settings)
    return _table(result), {**chosen, **result.to_json()}


def _one_by_one(
    model: Path, data: Path, sublayers: list[int], settings: dict[str, Any]
) -> "tuple[Table, dict[str, Any]]":
    """A table with a row for each N, and its JSON."""
    from krakenlm.eval.perplexity import perplexity_of_each
    from krakenlm.model.checkpoint import read_config

    measured = perplexity_of_each(model, data, sublayers, **settings)
    own = read_config(model).num_sublayers
    values = [
        {
            "sublayers": n,
            **result.to_json(),
            "perplexity_difference_percent": _difference(result, measured[own]),
        }
        for n, result in measured.items()
    ]
    return _table_of_each(measured, own), {"own_sublayers": own, "results": values}


def _difference(result: "PerplexityResult", own: "PerplexityResult") -> float:
    return 100 * (result.perplexity / own.perplexity - 1)


def _table_of_each(measured: "dict[int, PerplexityResult]", own: int) -> "Table":
    from rich.table import Table

    first = measured[own]
    how = "document by document" if first.per_document else "documents one after the other"
    table = Table(
        box=None,
        pad_edge=False,
        caption=f"{first.tokens:,} tokens, {first.bytes:,} bytes of UTF-8 text; predicted in "
        f"windows of {first.window}, {first.stride} apart, {how}",
        caption_justify="left",
    )
    for heading in ("N", "loss", "perplexity", "bits per byte", "perplexity against its own N"):
        table.add_column(heading, justify="right")
    for n, result in measured.items():
        table.add_row(
            str(n),
            f"{result.loss:.4f}",
            f"{result.perplexity:.2f}",
            f"{result.bits_per_byte:.4f}",
            "its own" if n == own else f"{_difference(result, first):+.2f} %",
        )
    return table


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
