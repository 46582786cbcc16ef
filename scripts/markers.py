"""Tables in the documentation that the code makes, between markers.

``<!-- table:NAME -->`` and ``<!-- end -->`` stand each on a line of its own; what lies between is
rewritten.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

Table = Callable[[], str]

_MARKED = re.compile(
    r"(<!-- table:(?P<name>\S+(?: \S+)*) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL
)


def filled(text: str, tables: Mapping[str, Table]) -> str:
    """``text`` with every marked table made anew.

    Raises:
        KeyError: a marker names no table.
    """

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{tables[match['name']]()}\n{match[4]}"

    return _MARKED.sub(table, text)


def names(text: str) -> list[str]:
    """The tables that ``text`` has markers for."""
    return [match["name"] for match in _MARKED.finditer(text)]


def rewrite(pages: Iterable[Path], tables: Mapping[str, Table]) -> None:
    """Fill the tables of some pages in place, and say which pages changed."""
    for page in pages:
        old = page.read_text(encoding="utf-8")
        new = filled(old, tables)
        if new != old:
            page.write_text(new, encoding="utf-8")
        print(f"{page.name}: {'rewritten' if new != old else 'current'}")


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool) -> str:
    """A table in Markdown, ending in a newline.

    Args:
        headings: one a column.
        rows: cells as text.
        numbers: align every column but the first to the right.
    """
    rules = ["---"] + ["---:" if numbers else "---"] * (len(headings) - 1)
    lines = [headings, rules, *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
