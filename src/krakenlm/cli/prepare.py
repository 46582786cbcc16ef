"""``krakenlm prepare``: text files to memory-mapped tokens."""

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    out: Annotated[Path, typer.Argument(help="The directory to make.", show_default=False)],
    text: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE...",
            help="Text files: .jsonl (key 'text') or plain text, either also as .gz.",
            show_default=False,
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="DIR|train:VOCAB|gpt2",
            help="A tokenizer's directory, a new one of VOCAB entries, or a name on the Hub.",
            show_default=False,
        ),
    ],
    validation_fraction: Annotated[
        float, typer.Option(help="The share of documents held out, chosen by their hash.")
    ] = 0.02,
    force: Annotated[bool, typer.Option("--force", help="Replace a prepared OUT.")] = False,
) -> None:
    """Turn text into tokens to train on: OUT gets token files, tokenizer and manifest."""
    from rich.table import Table

    from krakenlm.console import notes, results
    from krakenlm.data import tokens

    manifest = tokens.prepare(
        text, tokenizer, out, validation_fraction=validation_fraction, replace=force
    )
    table = Table("split", box=None, pad_edge=False)
    for heading in ("documents", "tokens", "bytes", "bytes/token"):
        table.add_column(heading, justify="right")
    for name in tokens.SPLITS:
        split = getattr(manifest.splits, name)
        counts = (split.documents, split.tokens, split.bytes)
        table.add_row(name, *(f"{n:,}" for n in counts), f"{split.bytes / split.tokens:.2f}")
    results.print(table)
    results.print(f"vocabulary {manifest.vocab_size:,}, {manifest.dtype}, in {out}", markup=False)
    if manifest.validation_from == "tail":
        notes.print("note: too few documents to hold whole ones out; validation is their tail")
