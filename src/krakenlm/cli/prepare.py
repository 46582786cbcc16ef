"""``krakenlm prepare``: text to memory-mapped tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.data.hub import HubDataset
    from krakenlm.data.manifest import Manifest


_Out = Annotated[Path, typer.Argument(help="The directory to make.", show_default=False)]
_Text = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE...",
        help="Text files: .jsonl, .csv, plain text, all also as .gz; .parquet, .json, ...",
        show_default=False,
    ),
]
_Dataset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|DIR",
        help="A dataset of the Hugging Face Hub, or a folder that datasets can read.",
        show_default=False,
    ),
]
_Config = Annotated[
    str | None, typer.Option(help="The dataset's configuration.", show_default=False)
]
_Split = Annotated[str | None, typer.Option(help="The dataset's split.", show_default="train")]
_Revision = Annotated[
    str | None,
    typer.Option(help="The dataset's branch, tag or commit on the Hub.", show_default="main"),
]
_Column = Annotated[str, typer.Option(help="The column, or the key in .jsonl, with the text.")]
_Tokenizer = Annotated[
    str,
    typer.Option(
        metavar="DIR|train:VOCAB|NAME",
        help="A tokenizer's directory, a new one of VOCAB entries, or a name on the Hub.",
    ),
]
_ValidationFraction = Annotated[
    float, typer.Option(help="The share of documents held out, chosen by their hash.")
]
_ShardTokens = Annotated[int, typer.Option(help="Tokens of one token file.")]
_Workers = Annotated[
    int | None, typer.Option(help="Processes that tokenize.", show_default="all cores")
]
_SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out and count lines that cannot be read, instead of stopping."
    ),
]
_Verify = Annotated[bool, typer.Option("--verify", help="Only check the files of a prepared OUT.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace a prepared OUT.")]


def prepare(
    out: _Out,
    text: _Text = None,
    dataset: _Dataset = None,
    config: _Config = None,
    split: _Split = None,
    revision: _Revision = None,
    column: _Column = "text",
    tokenizer: _Tokenizer = "gpt2",
    validation_fraction: _ValidationFraction = 0.02,
    shard_tokens: _ShardTokens = 100_000_000,
    workers: _Workers = None,
    skip_bad: _SkipBad = False,
    verify: _Verify = False,
    force: _Force = False,
) -> None:
    """Turn text into tokens to train on: OUT gets token files, tokenizer and manifest."""
    from krakenlm.data import tokens
    from krakenlm.data.bad_text import BadTextError
    from krakenlm.environment import cores_here

    if verify:
        _refuse_with_verify(text, dataset)
        _check(out)
        return
    try:
        manifest = tokens.prepare(
            _source(text, dataset, config, split, revision, column),
            tokenizer,
            out,
            validation_fraction=validation_fraction,
            replace=force,
            column=column,
            shard_tokens=shard_tokens,
            workers=len(cores_here()) if workers is None else workers,
            skip_bad=skip_bad,
        )
    except BadTextError as error:
        raise KrakenError(f"{error}; --skip-bad leaves such lines out") from error
    _show(manifest, out)


def _refuse_with_verify(text: list[Path] | None, dataset: str | None) -> None:
    if text or dataset is not None:
        raise typer.BadParameter(
            "it checks a prepared OUT and takes no text", param_hint="--verify"
        )


def _check(out: Path) -> None:
    from krakenlm.console import results
    from krakenlm.data import tokens

    manifest = tokens.verify(out)
    count = sum(len(manifest.split(name).shards) for name in tokens.SPLITS)
    results.print(f"{out} is whole: {count} token files and the tokenizer", markup=False)


def _source(
    text: list[Path] | None,
    dataset: str | None,
    config: str | None,
    split: str | None,
    revision: str | None,
    column: str,
) -> "list[Path] | HubDataset":
    """What is to be read; one of the two has to be given."""
    from krakenlm.data.hub import HubDataset

    if bool(text) == (dataset is not None):
        raise typer.BadParameter("give one of the two", param_hint="--text / --dataset")
    if text:
        if (config, split, revision) != (None, None, None):
            hint = "--config / --split / --revision"
            raise typer.BadParameter("only with --dataset", param_hint=hint)
        return text
    assert dataset is not None
    return HubDataset(
        name=dataset, config=config, split=split or "train", revision=revision, column=column
    )


def _show(manifest: "Manifest", out: Path) -> None:
    from rich.table import Table

    from krakenlm.console import notes, results
    from krakenlm.data.manifest import SPLITS

    table = Table("split", box=None, pad_edge=False)
    for heading in ("documents", "tokens", "bytes", "bytes/token", "files"):
        table.add_column(heading, justify="right")
    for name in SPLITS:
        split = manifest.split(name)
        counts = (split.documents, split.tokens, split.bytes)
        each = f"{split.bytes / split.tokens:.2f}"
        table.add_row(name, *(f"{n:,}" for n in counts), each, f"{len(split.shards):,}")
    results.print(table)
    results.print(f"vocabulary {manifest.vocab_size:,}, {manifest.dtype}, in {out}", markup=False)
    if manifest.validation_from == "tail":
        notes.print("note: too few documents to hold whole ones out; validation is their tail")
