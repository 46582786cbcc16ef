"""Which texts do datasets of the Hugging Face Hub, and files that are tables, hold?

Both are read with Hugging Face ``datasets``, which is installed on request and imported on use.
"""

import glob
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krakenlm.errors import KrakenError, first_line

# Rows held in memory at once while a column is read.
_ROWS = 64
_PACKED = (".gz", ".zst", ".xz", ".bz2")
# The reader of ``datasets`` for each kind of file, and its options.
_READERS: dict[str, tuple[str, dict[str, str]]] = {
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
    """A column of a dataset.

    Attributes:
        name: on the Hub, or a folder that ``datasets`` can read.
        config: the configuration, where the dataset has several.
        split: as ``datasets`` spells it, ``train[:1%]`` included.
        column: the one with the text.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"

    @property
    def part(self) -> str:
        """What is read of it, for people."""
        config = [] if self.config is None else [f"configuration {self.config}"]
        return ", ".join([*config, f"split {self.split}", f"column {self.column}"])


def load_rows(wanted: HubDataset) -> Any:
    """The rows of a dataset as a ``datasets.Dataset`` of one column, mapped from the disk.

    What the Hub has is downloaded once, into the cache of ``datasets``.

    Raises:
        KrakenError: ``datasets`` is not installed, the Hub cannot be reached, or there is no such
            dataset, configuration, split or column.
    """
    datasets = _library(f"dataset {wanted.name}")
    folder = Path(wanted.name).expanduser()
    if folder.is_file():
        raise KrakenError(f"{folder} is a file: give it with --text {folder}")
    if not folder.is_dir():
        require_hub(f"dataset {wanted.name}: no such folder", "local files, --text FILE...")
    name = str(folder) if folder.is_dir() else wanted.name
    try:
        rows = datasets.load_dataset(name, wanted.config, split=wanted.split)
    except Exception as error:  # the library's own, the Hub's, pyarrow's
        raise KrakenError(
            f"cannot load dataset {wanted.name} ({_reason(error)}): check the name, --config and "
            "--split, or give local files, --text FILE..."
        ) from error
    if wanted.column not in rows.column_names:
        raise _no_column(f"dataset {wanted.name}", wanted.column, rows.column_names)
    return rows.select_columns([wanted.column])


def texts_of(rows: Any, column: str, name: str) -> Iterator[str]:
    """The column's texts, row by row; a row without one gives an empty text.

    Raises:
        KrakenError: there is no such column, or something else than text stands in it.
    """
    number = 0
    for batch in rows.iter(batch_size=_ROWS):
        if column not in batch:
            raise _no_column(name, column, list(batch))
        for value in batch[column]:
            number += 1
            if not isinstance(value, str | None):
                raise KrakenError(
                    f"{name}, row {number}: column {column!r} holds a {type(value).__name__}, not "
                    "text: choose another with --column"
                )
            yield value or ""


def is_table(path: Path) -> bool:
    """Whether a file is read with ``datasets``; ``.jsonl`` and ``.jsonl.gz`` are not."""
    kind, packed = _kind(path)
    return kind in _READERS and not (kind == ".jsonl" and packed in ("", ".gz"))


def table_texts(path: Path, column: str) -> Iterator[str]:
    """The texts of a file for which ``is_table``, read on the way and not copied.

    Raises:
        KrakenError: ``datasets`` is not installed, or the file is damaged or lacks the column.
    """
    datasets = _library(str(path))
    reader, options = _READERS[_kind(path)[0]]
    try:
        file = glob.escape(str(path.resolve()))
        rows = datasets.load_dataset(
            reader, data_files=[file], split="train", streaming=True, **options
        )
        yield from texts_of(rows, column, str(path))
    except (KrakenError, FileNotFoundError):
        raise
    except Exception as error:  # the library's own, pyarrow's, pandas'
        raise KrakenError(
            f"cannot read {path} ({_reason(error)}): it is damaged or not what its name says"
        ) from error


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


def _kind(path: Path) -> tuple[str, str]:
    """The suffix that says what the file is, and the one that says how it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _PACKED else ""
    return (suffixes[-1] if suffixes else ""), packed


def _no_column(name: str, column: str, columns: list[str]) -> KrakenError:
    return KrakenError(
        f"{name} has no column {column!r} (columns: {', '.join(map(str, columns))}): choose the "
        "one with the text, --column NAME"
    )


def _reason(error: BaseException) -> str:
    """The innermost cause's first line: ``datasets`` wraps it in words that say nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
