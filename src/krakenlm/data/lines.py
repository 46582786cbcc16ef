"""Which texts do the lines of a file hold: a document, a JSON object each, or rows of a table?"""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TypeAlias

from krakenlm.data.bad_text import BadTextError, OnBad
from krakenlm.data.hub import no_column
from krakenlm.utf8 import how_to_convert, wide_encoding

Stream: TypeAlias = BufferedReader | gzip.GzipFile

# Of plain text about so much is read at once.
_READ_BYTES = 1 << 20
# Longer than any document; without a limit one quotation mark too many would take a file for a row.
_LONGEST_CELL = 1 << 28


def plain_chunks(path: Path, stream: Stream, on_bad: OnBad) -> Iterator[str]:
    """A document; a line that is not UTF-8 is bad."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number, read, left_out = 1, 0, False
    for block in _read(path, partial(_block, stream), on_bad):
        for part in BytesIO(block) if left_out or not _is_utf8(block) else [block]:
            pending = len(decoder.getstate()[0])
            try:
                text = "" if left_out else decoder.decode(part)
            except UnicodeDecodeError as error:
                on_bad(str(path), _not_utf8(path, number, read - pending + error.start))
                decoder.reset()
                text, left_out = "", True
            if text:
                yield text
            read += len(part)
            number += part.count(b"\n")
            left_out = left_out and not part.endswith(b"\n")
    if pending := len(decoder.getstate()[0]):
        on_bad(str(path), _not_utf8(path, number, read - pending))


def json_texts(path: Path, stream: Stream, column: str, on_bad: OnBad) -> Iterator[str]:
    """The text of each line, which is an object with the key ``column``."""
    read = 0
    for number, line in enumerate(_read(path, stream.readline, on_bad), 1):
        body = line.removeprefix(codecs.BOM_UTF8)  # also where such files were joined
        read += len(line)
        if body.isspace() or not body:
            continue
        try:
            text = _json_text(body, f"{path}:{number}", column)
        except UnicodeDecodeError as error:
            on_bad(str(path), _not_utf8(path, number, read - len(body) + error.start))
        except BadTextError as bad:
            on_bad(str(path), bad)
        else:
            yield text


def csv_texts(
    path: Path, stream: Stream, column: str, on_bad: OnBad, separator: str
) -> Iterator[str]:
    """The text of each row, under the heading ``column`` in the first one.

    Raises:
        KrakenError: there is no such column.
    """
    csv.field_size_limit(_LONGEST_CELL)
    rows = csv.reader(
        _decoded(_read(path, stream.readline, on_bad)), delimiter=separator, strict=True
    )
    heading: list[str] = []
    while True:
        where = f"{path}:{rows.line_num + 1}"
        try:
            row = next(rows)
            if not heading and row:
                heading = row
                if column not in heading:
                    raise no_column(str(path), column, heading)
            elif row:
                yield _cell(row, heading, column, where)
        except StopIteration:
            return
        except csv.Error as error:
            on_bad(
                str(path),
                BadTextError(
                    f"{where}: not a row of a table ({error})", "correct its quotation marks"
                ),
            )
        except BadTextError as bad:
            on_bad(str(path), bad)


def _read(path: Path, read: Callable[[], bytes], on_bad: OnBad) -> Iterator[bytes]:
    """What ``read`` gives until the end of the file, or until damage ends it."""
    first = True
    try:
        while data := read():
            encoding = wide_encoding(data) if first else None
            if encoding is not None:
                found = f"{path} is {encoding} text"
                on_bad(str(path), BadTextError(found, how_to_convert(encoding)))
                return
            first = False
            yield data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        found = f"{path} is not a whole gzip file ({error})"
        on_bad(str(path), BadTextError(found, "copy or download it again"))


def _block(stream: Stream) -> bytes:
    """The next lines; a very long one comes in several blocks."""
    block = stream.read1(_READ_BYTES)
    return block if block.endswith(b"\n") else block + stream.readline(_READ_BYTES)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(lines: Iterator[bytes]) -> Iterator[str]:
    """Without the byte order mark; what is not UTF-8 as surrogates, to be told row by row."""
    mark = codecs.BOM_UTF8
    for line in lines:
        yield line.removeprefix(mark).decode(errors="surrogateescape")
        mark = b""


def _json_text(line: bytes, where: str, column: str) -> str:
    decoded = line.decode()
    try:
        text = _value(json.loads(decoded), where, column)
        text.encode()
    except UnicodeEncodeError as error:
        raise BadTextError(
            f"{where}: half of a surrogate pair stands in the text, which UTF-8 cannot say",
            "correct the line or remove it",
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadTextError(
            f"{where}: not valid JSON ({error})", "a .jsonl file has one object a line"
        ) from error
    return text


def _value(value: object, where: str, column: str) -> str:
    if not isinstance(value, dict):
        raise BadTextError(
            f'{where}: a JSON {type(value).__name__}, not an object with a key "{column}"',
            f'write each line as {{"{column}": "..."}}',
        )
    if column not in value:
        keys = ", ".join(map(str, value)) or "none"
        raise BadTextError(
            f'{where}: no key "{column}" (keys: {keys})',
            "rename the one with the text, or give prepare its name with --column",
        )
    text = value[column]
    if not isinstance(text, str):
        found = f'{where}: "{column}" is a {type(text).__name__}'
        raise BadTextError(found, "it must be a string")
    return text


def _cell(row: list[str], heading: list[str], column: str, where: str) -> str:
    if len(row) != len(heading):
        raise BadTextError(
            f"{where}: {len(row)} cells in a row where the heading has {len(heading)}",
            "put cells with separators in them between quotation marks",
        )
    text = row[heading.index(column)]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadTextError(f"{where}: not UTF-8 text", how_to_convert("ENCODING")) from error
    return text


def _not_utf8(path: Path, number: int, offset: int) -> BadTextError:
    inside = " of what it unpacks to" if path.suffix.lower() == ".gz" else ""
    found = f"{path}:{number}: not UTF-8 text at byte {offset}{inside}"
    return BadTextError(found, how_to_convert("ENCODING"))
