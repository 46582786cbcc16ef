"""Which prompts does a file hold?

``.jsonl`` has one object a line with the prompt under ``prompt`` or ``text``; any other file, and
standard input, one prompt a line. Blank lines hold none, a byte order mark belongs to none.
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from krakenlm.errors import KrakenError

STANDARD_INPUT = "-"
_KEYS = ("prompt", "text")


class Prompt(NamedTuple):
    """A text to continue.

    Attributes:
        text: as it stands there, without the line's end.
        source: the file; empty where it comes from none.
        line: in the file, from 1.
    """

    text: str
    source: str = ""
    line: int = 0

    @property
    def name(self) -> str:
        """Where it stands, for people."""
        return f"{self.source}:{self.line}" if self.source else "the prompt"


def read_prompts(file: str) -> list[Prompt]:
    """All prompts of a file, or with ``-`` of standard input.

    Raises:
        KrakenError: it cannot be read, is not UTF-8 or JSON lines, or holds no prompt.
    """
    name = "standard input" if file == STANDARD_INPUT else file
    try:
        data = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise KrakenError(f"{name} does not exist: check the name of the prompt file") from error
    except OSError as error:
        raise KrakenError(f"cannot read {name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise KrakenError(
            f"{name} is not UTF-8 text at byte {error.start}: convert it, for example with iconv"
        ) from error
    is_json = Path(file).suffix.lower() == ".jsonl"
    prompts = [
        Prompt(_of_json(line, f"{name}:{number}") if is_json else line, name, number)
        for number, line in _lines(text)
    ]
    if not prompts:
        raise KrakenError(f"{name} holds no prompt: write one a line")
    return prompts


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered; line separators within a text are not their ends."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield number, line.removesuffix("\n")


def _of_json(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise KrakenError(
            f"{where}: not valid JSON ({error}): a .jsonl file has one object a line"
        ) from error
    found = [value[key] for key in _KEYS if key in value] if isinstance(value, dict) else []
    if not found or not isinstance(found[0], str):
        raise KrakenError(f'{where}: no prompt: write each line as {{"prompt": "..."}}')
    if not found[0].isprintable() and any("\ud800" <= c <= "\udfff" for c in found[0]):
        raise KrakenError(f"{where}: half of a surrogate pair stands in the prompt: correct it")
    return str(found[0])
