"""Which texts do datasets of the Hugging Face Hub, and tables such as ``.parquet``, hold?

Both are read with Hugging Face ``datasets``, which is installed on request and imported on use.
"""

import glob
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from krakenlm.data.bad_text import BadTextError, OnBad, refuse
from krakenlm.errors import KrakenError, first_line

PARQUET_BRANCH = "refs/convert/parquet"
"""The revision in which the Hub keeps what it converted: a folder for each configuration."""

# Rows held in memory at once while a column is read.
_ROWS = 64
_PACKED = (".gz", ".zst", ".xz", ".bz2")
# The reader of ``datasets`` for each kind of file.
_READERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
}
# What is read line by line without ``datasets``, packed with gzip or not at all.
_LINES = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
    """A column of a dataset.

    Attributes:
        name: on the Hub, or a folder that ``datasets`` can read.
        config: the configuration, where the dataset has several.
        split: as ``datasets`` spells it, ``train[:1%]`` included.
        column: the one with the text.
        revision: branch, tag or commit on the Hub; its main branch if not given.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None

    @property
    def part(self) -> str:
        """What is read of it, for people."""
        config = [] if self.config is None else [f"configuration {self.config}"]
        revision = [] if self.revision is None else [f"revision {self.revision}"]
        return ", ".join([*config, f"split {self.split}", f"column {self.column}", *revision])


def load_rows(wanted: HubDataset) -> Any:
    """The rows of a dataset as a ``datasets.Dataset`` of one column, mapped from the disk.

    What the Hub has is downloaded once, into the cache of ``datasets``.

    Raises:
        KrakenError: ``datasets`` is not installed, the Hub cannot be reached, or there is no such
            dataset, configuration, split, column or revision; or the dataset is a script.
    """
    datasets = _library(f"dataset {wanted.name}")
    folder = Path(wanted.name).expanduser()
    if folder.is_file():
        raise KrakenError(f"{folder} is a file: give it with --text {folder}")
    if folder.is_dir() and wanted.revision is not None:
        raise KrakenError(
            f"{folder} is a folder, which has no revision {wanted.revision}: leave out --revision"
        )
    if not folder.is_dir():
        require_hub(f"dataset {wanted.name}: no such folder", "local files, --text FILE...")
    converted = wanted.revision == PARQUET_BRANCH
    try:
        rows = datasets.load_dataset(
            str(folder) if folder.is_dir() else wanted.name,
            name=None if converted else wanted.config,
            data_dir=wanted.config if converted else None,
            split=wanted.split,
            revision=wanted.revision,
        )
    except Exception as error:  # the library's own, the Hub's, pyarrow's
        if "Dataset scripts are no longer supported" in str(error):
            raise _is_script(wanted.name, local=folder.is_dir()) from error
        given = "--config, --split and --revision" if wanted.revision else "--config and --split"
        raise KrakenError(
            f"cannot load dataset {wanted.name} ({_reason(error)}): check the name, {given}, "
            "or give local files, --text FILE..."
        ) from error
    if wanted.column not in rows.column_names:
        raise no_column(f"dataset {wanted.name}", wanted.column, rows.column_names)
    return rows.select_columns([wanted.column])


def texts_of(
    rows: Any, column: str, source: str, *, name: str = "", on_bad: OnBad = refuse
) -> Iterator[str]:
    """The column's texts, row by row; a row without one, or a bad one, gives an empty text.

    Args:
        rows: a dataset of the library.
        column: the one with the text.
        source: of the text, as ``on_bad`` knows it.
        name: of the source, for messages.
        on_bad: told of rows in which something else than text stands.

    Raises:
        KrakenError: there is no such column.
    """
    name = name or source
    number = 0
    for batch in rows.iter(batch_size=_ROWS):
        if column not in batch:
            raise no_column(name, column, list(batch))
        for value in batch[column]:
            number += 1
            if not isinstance(value, str | None):
                kind = type(value).__name__
                found = f"{name}, row {number}: column {column!r} holds a {kind}, not text"
                on_bad(source, BadTextError(found, "choose another with --column"))
                value = None
            yield value or ""


def is_table(path: Path) -> bool:
    """Whether a file is read with ``datasets``."""
    kind, packed = kind_of(path)
    return kind in _READERS and not (kind in _LINES and packed in ("", ".gz"))


def table_texts(path: Path, column: str, on_bad: OnBad = refuse) -> Iterator[str]:
    """The texts of a file for which ``is_table``, read on the way and not copied.

    Raises:
        BadTextError: it is damaged, from here on or altogether.
        KrakenError: ``datasets`` is not installed, or the file lacks the column.
    """
    datasets = _library(str(path))
    kind, _ = kind_of(path)
    reader, files = _READERS[kind], [glob.escape(str(path.resolve()))]
    open_rows = partial(
        datasets.load_dataset, reader, data_files=files, split="train", streaming=True
    )
    try:
        if reader == "csv":
            rows = open_rows(sep="\t" if kind == ".tsv" else ",")
        elif reader == "json":
            rows = open_rows(encoding="utf-8-sig")  # datasets 4 reads no mark before a list
        else:
            rows = open_rows()
        yield from texts_of(rows, column, str(path), on_bad=on_bad)
    except (KrakenError, FileNotFoundError):
        raise
    except Exception as error:  # the library's own, pyarrow's, pandas'
        raise BadTextError(
            f"cannot read {path} ({_reason(error)})", "it is damaged or not what its name says"
        ) from error


def kind_of(path: Path) -> tuple[str, str]:
    """The suffix that says what a file is, and the one that says how it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _PACKED else ""
    return (suffixes[-1] if suffixes else ""), packed


def no_column(name: str, column: str, columns: list[str]) -> KrakenError:
    """What to say where a table has no column of this name."""
    return KrakenError(
        f"{name} has no column {column!r} (columns: {', '.join(map(str, columns))}): choose the "
        "one with the text, --column NAME"
    )


def require_hub(why: str, instead: str) -> None:
    """Refuse to go on where ``datasets`` would ask a Hub that is out of reach.

    Args:
        why: it would be asked.
        instead: what the user can give to do without.

    Raises:
        KrakenError: the Hub does not answer, and ``HF_HUB_OFFLINE`` does not say to leave it alone.
    """
    import datasets

    if not (datasets.config.HF_HUB_OFFLINE or hub_answers()):
        raise KrakenError(
            f"{why}, and the Hugging Face Hub cannot be reached: check the network "
            f"(HF_HUB_OFFLINE=1 takes what was downloaded before), or give {instead}"
        )


def hub_answers() -> bool:
    """Whether the Hub is in reach: its own client would retry for the better part of a minute."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  the Hub's own variable
    try:
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _library(wanted_for: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise KrakenError(
            f"{wanted_for} is read with Hugging Face datasets: pip install 'krakenlm[data]'"
        ) from None
    return datasets


def _is_script(name: str, *, local: bool) -> KrakenError:
    what = f"dataset {name} is a script, and datasets runs none"
    if local:
        return KrakenError(f"{what}: give the files that it reads, --text FILE...")
    return KrakenError(
        f"{what}: give one in Parquet, or what the Hub has converted of it (of a large one the "
        f"beginning only), --revision {PARQUET_BRANCH}"
    )


def _reason(error: BaseException) -> str:
    """The innermost cause's first line: ``datasets`` wraps it in words that say nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
