"""Which documents do these files hold?

Read are ``.jsonl`` (one document a line, key ``text``), tables such as ``.csv`` and ``.parquet``
(one document a row, column ``text``), and any other file as plain UTF-8 text (one document); a
further ``.gz`` means compressed. Long documents are handed out in pieces, so that memory stays
bounded by a piece, or by one line.
"""

import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from krakenlm.data.bad_text import BadTextError, NoTextError, OnBad, refuse
from krakenlm.data.hub import is_table, kind_of, table_texts
from krakenlm.data.lines import Stream, csv_texts, json_texts, plain_chunks
from krakenlm.errors import KrakenError
from krakenlm.utf8 import MARK, how_to_convert, wide_encoding

# Small enough that a batch of pieces keeps every core busy and takes little memory as tokens.
PIECE_CHARS = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A stretch of one document.

    Attributes:
        text: what it says; the pieces of a document joined are the document.
        source: the file or the dataset it comes from.
        first: whether the document begins here.
        last: whether the document ends here.
        position: how much of the source has been read: bytes of a file (of the compressed file for
            ``.gz``; 0 for a table), rows of a dataset.
    """

    text: str
    source: str
    first: bool
    last: bool
    position: int


def check_files(paths: Sequence[Path]) -> dict[Path, int]:
    """Size in bytes, on the disk, of each file.

    Raises:
        KrakenError: no files at all, or one that is missing, a directory or empty.
    """
    if not paths:
        raise KrakenError("no text files given: name at least one, as in --text FILE")
    sizes = {}
    for path in paths:
        if path.is_dir():
            raise KrakenError(f"{path} is a directory: name the text files in it, as in {path}/*")
        try:
            sizes[path] = path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from error
        if sizes[path] == 0:
            raise _empty(path)
    return sizes


def pieces(paths: Iterable[Path], column: str = "text", on_bad: OnBad = refuse) -> Iterator[Piece]:
    """The documents of all files, in order, in pieces of at most ``PIECE_CHARS`` characters.

    Where a document is cut depends on nothing but its text. Documents of white space only are
    left out.

    Args:
        paths: the files.
        column: the key of ``.jsonl`` files, or the column of tables, that holds the text.
        on_bad: told of what cannot be read or holds no text; where it does not raise, that is
            left out: a line, a row of a table, or the rest of a damaged file.

    Raises:
        KrakenError: a file is missing or unreadable, or a table has no such column.
    """
    for path in paths:
        holds_text = False
        found = _table_pieces(path, column, on_bad) if is_table(path) else None
        for piece in found or _pieces_of(path, column, on_bad):
            holds_text = True
            yield piece
        if not holds_text:
            on_bad(str(path), _empty(path))


def cut(chunks: Iterable[str]) -> Iterator[tuple[str, bool, bool]]:
    """(text, whether the first, whether the last) for each piece of a document.

    A byte order mark before the document is left out: tools that read one as text carry it along.

    Args:
        chunks: the document as it is read; nothing comes of one that is blank.
    """
    rest, first = "", True
    for chunk in chunks:
        rest += chunk.lstrip(MARK) if first and not rest else chunk
        while len(rest) > PIECE_CHARS:
            end = _end_of_piece(rest)
            yield rest[:end], first, False
            rest, first = rest[end:], False
    if not first or (rest and not rest.isspace()):
        yield rest, first, True


def utf8_length(text: str) -> int:
    """How many bytes the text takes as UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _pieces_of(path: Path, column: str, on_bad: OnBad) -> Iterator[Piece]:
    try:
        with path.open("rb") as raw:
            packed = path.suffix.lower() == ".gz"
            stream: Stream = gzip.GzipFile(fileobj=raw) if packed else raw
            for document in _documents(path, stream, column, on_bad):
                for text, first, last in cut(document):
                    yield Piece(
                        text=text, source=str(path), first=first, last=last, position=raw.tell()
                    )
    except OSError as error:
        raise _unreadable(path, error) from error


def _table_pieces(path: Path, column: str, on_bad: OnBad) -> Iterator[Piece]:
    check_files([path])
    try:
        _check_encoding(path)
        for document in table_texts(path, column, on_bad):
            for text, first, last in cut([document]):
                yield Piece(text=text, source=str(path), first=first, last=last, position=0)
    except BadTextError as bad:
        on_bad(str(path), bad)


def _documents(path: Path, stream: Stream, column: str, on_bad: OnBad) -> Iterator[Iterable[str]]:
    """Each document as the chunks it is read in."""
    kind, _ = kind_of(path)
    if kind in (".csv", ".tsv"):
        separator = "\t" if kind == ".tsv" else ","
        texts = csv_texts(path, stream, column, on_bad, separator)
    elif kind == ".jsonl":
        texts = json_texts(path, stream, column, on_bad)
    else:
        yield plain_chunks(path, stream, on_bad)
        return
    for text in texts:
        yield (text,)


def _check_encoding(path: Path) -> None:
    try:
        with path.open("rb") as file:
            encoding = wide_encoding(file.read(4))
    except OSError as error:
        raise _unreadable(path, error) from error
    if encoding is not None:
        raise BadTextError(f"{path} is {encoding} text", how_to_convert(encoding))


def _end_of_piece(text: str) -> int:
    """Where to cut: byte-level BPE never joins ``word\\n`` to ``word``, so preferably there."""
    newline = text.rfind("\n", 0, PIECE_CHARS)
    while newline > 0:
        if not text[newline - 1].isspace() and not text[newline + 1].isspace():
            return newline + 1
        newline = text.rfind("\n", 0, newline)
    for separator, keep in (("\n", 1), (" ", 0)):  # a space belongs to the word behind it
        found = text.rfind(separator, 1, PIECE_CHARS)
        if found > 0:
            return found + keep
    return PIECE_CHARS


def _empty(path: Path) -> NoTextError:
    return NoTextError(f"{path} is empty", "leave it out or put text into it")


def _unreadable(path: Path, error: OSError) -> KrakenError:
    if isinstance(error, FileNotFoundError):
        return KrakenError(f"{path} does not exist: check the name of the text file")
    return KrakenError(f"cannot read {path}: {error.strerror or error}")
