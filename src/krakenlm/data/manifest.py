"""What does a prepared directory hold?

``manifest.json`` answers; it is read strictly, so that a file of another version or made by hand
is refused with the field that does not fit instead of being half understood.
"""

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.strict import from_json, read_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 3
SPLITS = ("train", "validation")
# How version 2 wrote down what was read of a dataset; of a file, nothing.
_PART = re.compile(
    r"|(?:configuration (?P<config>.*), )?split (?P<split>.*), column (?P<column>.*)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """The tokenizer.

    Attributes:
        source: where it was taken from.
        sha256: of ``tokenizer/tokenizer.json``.
        ids_sha256: of what decides ids in it, see ``krakenlm.data.same_tokenizer``; empty in
            manifests that do not have it.
    """

    source: str
    sha256: str
    ids_sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One token file.

    Attributes:
        file: its name in the directory.
        tokens: how many it holds.
        sha256: of its bytes.
    """

    file: str
    tokens: int
    sha256: str

    def __post_init__(self) -> None:
        if self.file in ("", ".", "..") or "/" in self.file or "\\" in self.file:
            raise KrakenError(f"file={self.file!r}: needs the name of a file in the directory")
        _check_counts(self, "tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split: its token files are one sequence of tokens.

    Attributes:
        documents: how many documents it holds; one that is cut in two counts in both splits.
        tokens: how many tokens, the end of each document included.
        bytes: the UTF-8 length of the text, without the ends of documents.
        shards: the token files, in order; a document may begin in one and end in the next.
    """

    documents: int
    tokens: int
    bytes: int
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        _check_counts(self, "documents", "tokens", "bytes")
        if sum(shard.tokens for shard in self.shards) != self.tokens:
            raise KrakenError(f"tokens={self.tokens}: needs the sum of the shards' tokens")

    @property
    def sha256(self) -> str:
        """Of the only shard; of several, what their sums joined have as theirs."""
        sums = [shard.sha256 for shard in self.shards]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A text file or a dataset, and the UTF-8 length of the text it gave.

    Attributes:
        path: of the file, or the dataset's name.
        bytes: of its text.
        skipped: how many lines or rows of it were bad and left out.
        config: of a dataset that has several; empty where there is none, as of a file.
        split: of a dataset, as ``datasets`` spells it.
        column: of a dataset.
        revision: of a dataset on the Hub, where one was asked for.
    """

    path: str
    bytes: int
    skipped: int = 0
    config: str = ""
    split: str = ""
    column: str = ""
    revision: str = ""

    def __post_init__(self) -> None:
        _check_counts(self, "bytes", "skipped")


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The two splits."""

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
        sources: where the text came from, in order.
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

    def split(self, name: str) -> Split:
        """The split of this name, one of ``SPLITS``."""
        return self.splits.train if name == "train" else self.splits.validation

    @property
    def skipped(self) -> int:
        """How many lines or rows of all sources were bad and left out."""
        return sum(source.skipped for source in self.sources)

    def save(self, directory: Path) -> None:
        """Write ``manifest.json`` into the directory."""
        write_json(directory / MANIFEST, dataclasses.asdict(self))

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Read ``manifest.json`` from the directory.

        Raises:
            KrakenError: it is missing or damaged, has unknown or missing keys, or another version.
        """
        path, advice = directory / MANIFEST, "prepare the text again"
        try:
            value = read_json(path, advice)
        except FileNotFoundError:
            what = "holds no manifest.json" if directory.is_dir() else "does not exist"
            raise KrakenError(
                f"{directory} {what}: make a prepared directory with krakenlm prepare"
            ) from None
        except NotADirectoryError:
            raise KrakenError(f"{directory} is a file: give a prepared directory") from None
        version = value.get("format_version") if isinstance(value, dict) else None
        if version not in (1, 2, FORMAT_VERSION) or isinstance(version, bool):
            raise KrakenError(
                f"{path}: format_version is {version!r}, this krakenlm reads 1 to "
                f"{FORMAT_VERSION}: {advice}"
            )
        if version == 1:
            value = _with_shards(value)
        if version != FORMAT_VERSION:
            value = {**_with_dataset_fields(value), "format_version": FORMAT_VERSION}
        return from_json(cls, value, path, advice)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_shards(value: dict[str, Any]) -> dict[str, Any]:
    """A manifest of version 1, whose splits are single files, as one of version 2."""
    splits = value.get("splits")
    if not isinstance(splits, dict):
        return value  # the strict reader says what is wrong
    upgraded = {
        name: _with_one_shard(name, split) if isinstance(split, dict) else split
        for name, split in splits.items()
    }
    return {**value, "splits": upgraded}


def _with_one_shard(name: str, split: dict[str, Any]) -> dict[str, Any]:
    shard = {"file": f"{name}.bin"} | {k: split[k] for k in ("tokens", "sha256") if k in split}
    return {key: each for key, each in split.items() if key != "sha256"} | {"shards": [shard]}


def _with_dataset_fields(value: dict[str, Any]) -> dict[str, Any]:
    """A manifest of version 2, which says in words what was read of a dataset, as of version 3."""
    sources = value.get("sources")
    if not isinstance(sources, list):
        return value
    return {**value, "sources": [_without_part(source) for source in sources]}


def _without_part(source: Any) -> Any:
    part = source.get("part") if isinstance(source, dict) else None
    said = _PART.fullmatch(part) if isinstance(part, str) else None
    if said is None:
        return source  # the strict reader says what is wrong
    rest = {key: each for key, each in source.items() if key != "part"}
    return rest | {key: each for key, each in said.groupdict().items() if each is not None}


def _check_counts(instance: object, *names: str) -> None:
    for name in names:
        if getattr(instance, name) < 0:
            raise KrakenError(f"{name}={getattr(instance, name)}: needs 0 or more")
