"""What does a prepared directory hold?

``manifest.json`` answers; it is read strictly, so that a file of another version or made by hand
is refused with the field that does not fit instead of being half understood.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.strict import from_plain

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """The tokenizer: where it was taken from, and the sha256 of ``tokenizer/tokenizer.json``."""

    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One token file.

    Attributes:
        documents: how many documents it holds; one that is cut in two counts in both splits.
        tokens: how many tokens, the end of each document included.
        bytes: the UTF-8 length of the text, without the ends of documents.
        sha256: of the token file.
    """

    documents: int
    tokens: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        for name in ("documents", "tokens", "bytes"):
            if getattr(self, name) < 0:
                raise KrakenError(f"{name}={getattr(self, name)}: needs 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A text file and the UTF-8 length of the text it gave."""

    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The two token files."""

    train: Split
    validation: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The contents of a prepared directory.

    Attributes:
        format_version: of the directory's layout.
        dtype: of the token files, little-endian.
        vocab_size: every token is below it.
        eos_id: the token that ends a document.
        tokenizer: what made the tokens.
        validation_fraction: the share of documents that was asked for.
        validation_from: ``documents`` when whole documents were chosen by the hash of their text,
            ``tail`` when there were so few that the end of the token stream was held out.
        splits: the token files.
        sources: the text files, in order.
    """

    format_version: int = FORMAT_VERSION
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    eos_id: int
    tokenizer: Tokenizer
    validation_fraction: float
    validation_from: Literal["documents", "tail"]
    splits: Splits
    sources: tuple[Source, ...]

    def save(self, directory: Path) -> None:
        """Write ``manifest.json`` into the directory."""
        write_json(directory / MANIFEST, dataclasses.asdict(self))

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Read ``manifest.json`` from the directory.

        Raises:
            KrakenError: it is missing or damaged, has unknown or missing keys, or another version.
        """
        path = directory / MANIFEST
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "holds no manifest.json" if directory.is_dir() else "does not exist"
            raise KrakenError(
                f"{directory} {what}: make a prepared directory with krakenlm prepare"
            ) from None
        except NotADirectoryError:
            raise KrakenError(f"{directory} is a file: give a prepared directory") from None
        except (OSError, ValueError) as error:
            raise KrakenError(f"cannot read {path} ({error}): prepare the text again") from error
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise KrakenError(
                f"{path}: format_version is {version!r}, this krakenlm reads {FORMAT_VERSION}: "
                "prepare the text again"
            )
        try:
            return from_plain(cls, value)
        except KrakenError as error:
            raise KrakenError(f"{path}: {error}; prepare the text again") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
