"""Where does the text come from, and how much of it has been read?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from krakenlm.data.bad_text import OnBad, Skipped
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
        """All of it, from the beginning, the same way each time; what is bad is counted anew."""

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
        skipped: what is bad and left out, or refused.
    """

    sizes: Mapping[Path, int]
    column: str
    skipped: Skipped = field(default_factory=Skipped)
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
        self.skipped.clear()
        holds_text = False
        for piece in pieces(self.sizes, self.column, self.skipped.add):
            holds_text = True
            yield piece
        if not holds_text:
            raise self.skipped.nothing_left()

    def done(self, piece: Piece) -> int:
        """Kilobytes up to this piece."""
        return -(-(self._starts[piece.source] + piece.position) // 1000)

    def sample(self, limit: int) -> Iterator[str]:
        """The beginnings of all files."""
        return sample_of_files(self.sizes, self.column, self.skipped.apart().add)(limit)

    def sources(self, text_bytes: Mapping[str, int]) -> tuple[Source, ...]:
        """One for each file."""
        skipped = self.skipped.counts
        names = map(str, self.sizes)
        return tuple(Source(path=p, bytes=text_bytes[p], skipped=skipped[p]) for p in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of a dataset, each a document.

    Attributes:
        wanted: what was asked for.
        rows: the ``datasets.Dataset``, mapped from the disk.
        skipped: rows that hold something else than text, left out or refused.
    """

    wanted: HubDataset
    rows: Any
    skipped: Skipped = field(default_factory=Skipped)
    unit: str = field(default="rows", init=False)

    @classmethod
    def load(cls, wanted: HubDataset, skipped: Skipped) -> "Rows":
        """Open it, downloaded first where it is not.

        Raises:
            KrakenError: see ``load_rows``.
        """
        return cls(wanted=wanted, rows=load_rows(wanted), skipped=skipped)

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
        self.skipped.clear()
        name, holds_text = self.wanted.name, False
        for row, document in enumerate(self._texts(self.rows, self.skipped.add), 1):
            for text, first, last in cut([document]):
                holds_text = True
                yield Piece(text=text, source=name, first=first, last=last, position=row)
        if not holds_text and self.skipped.counts:
            raise self.skipped.nothing_left()
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
        on_bad = self.skipped.apart().add
        each = sum(len(text.encode()) for text in self._texts(probed, on_bad)) / len(probed)
        step = max(1, int(count * max(each, 1.0) / limit))
        for text in self._texts(self.rows.select(range(0, count, step)), on_bad):
            taken = text.encode()[:limit]
            yield taken.decode(errors="ignore")  # a character cut in two is left out
            limit -= len(taken)
            if limit <= 0:
                break

    def sources(self, text_bytes: Mapping[str, int]) -> tuple[Source, ...]:
        """The dataset."""
        wanted = self.wanted
        return (
            Source(
                path=wanted.name,
                bytes=text_bytes[wanted.name],
                skipped=self.skipped.counts[wanted.name],
                config=wanted.config or "",
                split=wanted.split,
                column=wanted.column,
                revision=wanted.revision or "",
            ),
        )

    def _texts(self, rows: Any, on_bad: OnBad) -> Iterator[str]:
        name = f"dataset {self.wanted.name}"
        return texts_of(rows, self.wanted.column, self.wanted.name, name=name, on_bad=on_bad)
