"""Where does the text come from, and how much of it has been read?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from krakenlm.data.hub import HubDataset, load_rows, texts_of
from krakenlm.data.manifest import Source
from krakenlm.data.text import Piece, cut, pieces
from krakenlm.data.tokenizer import sample_of_files
from krakenlm.errors import KrakenError

# Rows that are looked at to tell how long a document is.
_PROBED_ROWS = 128


class Corpus(Protocol):
    """Documents in a fixed order.

    Attributes:
        names: what it was asked for; the same names are taken for the same text until the text is
            read.
        unit: what progress counts.
        total: of these units.
    """

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def unit(self) -> str: ...  # noqa: D102

    @property
    def total(self) -> int: ...  # noqa: D102

    def pieces(self) -> Iterator[Piece]:
        """All of it, from the beginning, the same way each time."""

    def done(self, piece: Piece) -> int:
        """How many units have been read when this piece has."""

    def sample(self, limit: int) -> Iterator[str]:
        """About ``limit`` bytes to learn a tokenizer from."""

    def sources(self, text_bytes: Mapping[str, int]) -> tuple[Source, ...]:
        """The manifest's entries, given the bytes of text for each ``Piece.source``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFiles:
    """Files, in order.

    Attributes:
        sizes: on the disk, in bytes.
        column: the key or column with the text, in files that have such.
    """

    sizes: Mapping[Path, int]
    column: str
    unit: str = field(default="kB", init=False)
    _starts: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        start = 0
        for path, size in self.sizes.items():
            self._starts[str(path)] = start
            start += size

    @property
    def names(self) -> tuple[str, ...]:
        """The paths, and the column."""
        return (*map(str, self.sizes), f"column {self.column}")

    @property
    def total(self) -> int:
        """Of kilobytes, compressed ones where a file is."""
        return -(-sum(self.sizes.values()) // 1000)

    def pieces(self) -> Iterator[Piece]:
        """Of one file after the other."""
        return pieces(self.sizes, self.column)

    def done(self, piece: Piece) -> int:
        """Kilobytes up to this piece."""
        return -(-(self._starts[piece.source] + piece.position) // 1000)

    def sample(self, limit: int) -> Iterator[str]:
        """The beginnings of all files."""
        return sample_of_files(self.sizes, self.column)(limit)

    def sources(self, text_bytes: Mapping[str, int]) -> tuple[Source, ...]:
        """One for each file."""
        return tuple(Source(path=str(path), bytes=text_bytes[str(path)]) for path in self.sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of a dataset, each a document.

    Attributes:
        wanted: what was asked for.
        rows: the ``datasets.Dataset``, mapped from the disk.
    """

    wanted: HubDataset
    rows: Any
    unit: str = field(default="rows", init=False)

    @classmethod
    def load(cls, wanted: HubDataset) -> "Rows":
        """Open it, downloaded first where it is not.

        Raises:
            KrakenError: see ``load_rows``.
        """
        return cls(wanted=wanted, rows=load_rows(wanted))

    @property
    def names(self) -> tuple[str, ...]:
        """The dataset and what is read of it."""
        return (self.wanted.name, self.wanted.part)

    @property
    def total(self) -> int:
        """Of rows."""
        return len(self.rows)

    def pieces(self) -> Iterator[Piece]:
        """Of one row after the other."""
        name, holds_text = self.wanted.name, False
        for row, document in enumerate(self._texts(self.rows), 1):
            for text, first, last in cut([document]):
                holds_text = True
                yield Piece(text=text, source=name, first=first, last=last, position=row)
        if not holds_text:
            raise KrakenError(
                f"dataset {name} has no text in {self.wanted.part}: choose another --split or "
                "--column"
            )

    def done(self, piece: Piece) -> int:
        """Rows up to this piece's."""
        return piece.position

    def sample(self, limit: int) -> Iterator[str]:
        """Rows at equal distances, as datasets are often sorted."""
        count = len(self.rows)
        if count == 0:
            return
        probed = self.rows.select(range(0, count, max(1, count // _PROBED_ROWS)))
        each = sum(len(text.encode()) for text in self._texts(probed)) / len(probed)
        step = max(1, int(count * max(each, 1.0) / limit))
        for text in self._texts(self.rows.select(range(0, count, step))):
            taken = text.encode()[:limit]
            yield taken.decode(errors="ignore")  # a character cut in two is left out
            limit -= len(taken)
            if limit <= 0:
                break

    def sources(self, text_bytes: Mapping[str, int]) -> tuple[Source, ...]:
        """The dataset."""
        name = self.wanted.name
        return (Source(path=name, bytes=text_bytes[name], part=self.wanted.part),)

    def _texts(self, rows: Any) -> Iterator[str]:
        return texts_of(rows, self.wanted.column, f"dataset {self.wanted.name}")
