"""Is this file UTF-8 text, and where does the text begin?

Editors and shells of Windows put a byte order mark before a text, or write it as UTF-16. The mark
of UTF-8 is no part of the text and is left out; UTF-16 is refused with what to do, as it would be
read as other characters.
"""

import codecs
from pathlib import Path

from krakenlm.errors import KrakenError

MARK = "\ufeff"
"""The byte order mark, which bytes begin with as ``codecs.BOM_UTF8``."""

_WIDE = (
    ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),  # a UTF-32 mark may begin with one
)


def read_utf8(path: Path) -> str:
    """A text file, without the byte order mark that it may begin with.

    Raises:
        OSError: it cannot be read.
        KrakenError: it is not UTF-8.
    """
    data = path.read_bytes()
    encoding = wide_encoding(data)
    if encoding is not None:
        raise KrakenError(f"{path} is {encoding} text: {how_to_convert(encoding)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + len(data) - len(error.object)
        raise KrakenError(
            f"{path} is not UTF-8 text at byte {offset}: {how_to_convert('ENCODING')}"
        ) from error


def wide_encoding(beginning: bytes) -> str | None:
    """UTF-16 or UTF-32, where bytes begin with the mark of one; it needs four of them."""
    return next((name for name, marks in _WIDE if beginning.startswith(marks)), None)


def how_to_convert(encoding: str) -> str:
    """What to do about a file of this encoding."""
    return f"convert it, iconv -f {encoding} -t UTF-8 OLD > NEW"
