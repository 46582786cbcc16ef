"""Which documents do these files hold?

Read are ``.jsonl`` (one document a line, key ``text``), tables that Hugging Face ``datasets`` can
read such as ``.parquet`` and ``.csv`` (one document a row, column ``text``), and any other file as
plain UTF-8 text (one document); a further ``.gz`` means compressed. Long documents are handed out
in pieces, so that memory stays bounded by a piece, or by one line of JSON.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from krakenlm.data.hub import is_table, table_texts
from krakenlm.errors import KrakenError

# Small enough that a batch of pieces keeps every core busy and takes little memory as tokens.
PIECE_CHARS = 1 << 18
_READ_BYTES = 1 << 20

_Stream: TypeAlias = BufferedReader | gzip.GzipFile


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


def pieces(paths: Iterable[Path], column: str = "text") -> Iterator[Piece]:
    """The documents of all files, in order, in pieces of at most ``PIECE_CHARS`` characters.

    Where a document is cut depends on nothing but its text. Documents of white space only are
    left out.

    Args:
        paths: the files.
        column: the key of ``.jsonl`` files, or the column of tables, that holds the text.

    Raises:
        KrakenError: a file is missing, unreadable, damaged or holds no text.
    """
    for path in paths:
        yield from _table_pieces(path, column) if is_table(path) else _pieces_of(path, column)


def cut(chunks: Iterable[str]) -> Iterator[tuple[str, bool, bool]]:
    """(text, whether the first, whether the last) for each piece of a document.

    Args:
        chunks: the document as it is read; nothing comes of one that is blank.
    """
    rest, first = "", True
    for chunk in chunks:
        rest += chunk
        while len(rest) > PIECE_CHARS:
            end = _end_of_piece(rest)
            yield rest[:end], first, False
            rest, first = rest[end:], False
    if not first or (rest and not rest.isspace()):
        yield rest, first, True


def utf8_length(text: str) -> int:
    """How many bytes the text takes as UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _pieces_of(path: Path, column: str) -> Iterator[Piece]:
    holds_text = False
    try:
        with path.open("rb") as raw:
            packed = path.suffix.lower() == ".gz"
            stream: _Stream = gzip.GzipFile(fileobj=raw) if packed else raw
            for document in _documents(path, stream, column):
                for text, first, last in cut(document):
                    holds_text = True
                    yield Piece(
                        text=text, source=str(path), first=first, last=last, position=raw.tell()
                    )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise KrakenError(
            f"{path} is not a whole gzip file ({error}): copy or download it again"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not holds_text:
        raise _empty(path)


def _table_pieces(path: Path, column: str) -> Iterator[Piece]:
    holds_text = False
    check_files([path])
    for document in table_texts(path, column):
        for text, first, last in cut([document]):
            holds_text = True
            yield Piece(text=text, source=str(path), first=first, last=last, position=0)
    if not holds_text:
        raise _empty(path)


def _documents(path: Path, stream: _Stream, column: str) -> Iterator[Iterable[str]]:
    """Each document as the chunks it is read in."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".jsonl"] or suffixes[-2:] == [".jsonl", ".gz"]:
        for text in _json_texts(path, stream, column):
            yield (text,)
    else:
        yield _plain_chunks(path, stream)


def _plain_chunks(path: Path, stream: _Stream) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the first byte the decoder has not turned into text
    while True:
        data = stream.read(_READ_BYTES)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start) from error
        if not data:
            return
        offset += utf8_length(text)
        yield text


def _json_texts(path: Path, stream: _Stream, column: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, 1):
        where = f"{path}:{number}"
        if not line.isspace():
            try:
                text = _text_of(json.loads(line.decode()), where, column)
                text.encode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start) from error
            except UnicodeEncodeError as error:
                raise KrakenError(
                    f"{where}: half of a surrogate pair stands in the text, which UTF-8 cannot "
                    "say: correct the line or remove it"
                ) from error
            except (ValueError, RecursionError) as error:
                raise KrakenError(
                    f"{where}: not valid JSON ({error}): a .jsonl file has one object a line"
                ) from error
            yield text
        offset += len(line)


def _text_of(value: object, where: str, column: str) -> str:
    if not isinstance(value, dict):
        raise KrakenError(
            f'{where}: a JSON {type(value).__name__}, not an object with a key "{column}": '
            f'write each line as {{"{column}": "..."}}'
        )
    if column not in value:
        keys = ", ".join(map(str, value)) or "none"
        raise KrakenError(
            f'{where}: no key "{column}" (keys: {keys}): rename the one with the text, or give '
            "prepare its name with --column"
        )
    text = value[column]
    if not isinstance(text, str):
        raise KrakenError(f'{where}: "{column}" is a {type(text).__name__}: it must be a string')
    return text


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


def _empty(path: Path) -> KrakenError:
    return KrakenError(f"{path} is empty: leave it out or put text into it")


def _not_utf8(path: Path, offset: int) -> KrakenError:
    inside = " of what it unpacks to" if path.suffix.lower() == ".gz" else ""
    return KrakenError(
        f"{path} is not UTF-8 text at byte {offset}{inside}: convert it, for example with iconv"
    )


def _unreadable(path: Path, error: OSError) -> KrakenError:
    if isinstance(error, FileNotFoundError):
        return KrakenError(f"{path} does not exist: check the name of the text file")
    return KrakenError(f"cannot read {path}: {error.strerror or error}")
