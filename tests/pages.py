"""Links, anchors, file names and tables of Markdown pages, and which of them are broken."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)>\s]*)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^>\s]+)", re.MULTILINE)
_HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]*)\"", re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
_NAMED = re.compile(r"(?<![\w./-])(?:docs|recipes|scripts|src|tests)/[\w./-]*\w\.\w+\b")


class Link(NamedTuple):
    """A link of a page and the line that it is on."""

    target: str
    line: int


def links(text: str) -> Iterator[Link]:
    """Every link and image of a page, in Markdown or HTML; what looks like one in code is none."""
    prose = _without(_CODE, _without(_FENCE, text))
    for pattern in (_LINK, _REFERENCE, _HTML):
        for match in pattern.finditer(prose):
            yield Link(match[1], text.count("\n", 0, match.start(1)) + 1)


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings have both on the site and on GitHub."""
    titles = [_plain(title) for title in _HEADING.findall(_without(_FENCE, text))]
    site = _numbered(map(_site_slug, titles), "_")
    return site & _numbered(map(_github_slug, titles), "-")


def broken(page: Path) -> list[str]:
    """What is wrong with the links of a page, one line a link."""
    return [
        f"{page.name}:{link.line}: {link.target}: {fault}"
        for link in links(page.read_text(encoding="utf-8"))
        if (fault := _fault(page, link.target)) is not None
    ]


def rows_without_table(text: str) -> list[int]:
    """Lines on which table rows begin that have no head, as where a table has a gap."""
    table = re.compile(r"^(\|.*\n)+", re.MULTILINE)
    prose = _without(_FENCE, text)
    return [
        prose.count("\n", 0, match.start()) + 1
        for match in table.finditer(prose)
        if not re.match(r"\|.*\n\|[ :|-]+\|\n", match[0])
    ]


def files_named(text: str) -> set[str]:
    """The files of the repository that a text speaks of, as in `scripts/markers.py`."""
    return set(_NAMED.findall(text))


def _fault(page: Path, target: str) -> str | None:
    address = urlsplit(target)
    if address.scheme or address.netloc:
        well_formed = address.scheme == "https" and "." in (address.hostname or "")
        return None if well_formed else "not of the form https://host/path"
    if target.startswith("/"):
        return "not relative to the page"
    lies_at = (page.parent / address.path) if address.path else page
    if not lies_at.exists():
        return "no such file"
    if "#" not in target:
        return None
    if lies_at.suffix != ".md":
        return "only pages have anchors"
    known = anchors(lies_at.read_text(encoding="utf-8"))
    return None if address.fragment in known else "no such heading"


def _without(pattern: re.Pattern[str], text: str) -> str:
    """The text with blanks in place of what matches, so that all else keeps its line."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _plain(title: str) -> str:
    """A heading without its Markdown: of a link its words, of code what is between the ticks."""
    return re.sub(r"[`*]", "", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title))


def _site_slug(title: str) -> str:
    """As Python-Markdown's ``toc`` makes it, which MkDocs uses."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


def _github_slug(title: str) -> str:
    return re.sub(r"[^\w\s-]", "", title.strip().lower()).replace(" ", "-")


def _numbered(slugs: Iterable[str], joint: str) -> set[str]:
    """Each slug once: from its second time on a number follows it."""
    found: set[str] = set()
    for slug in slugs:
        number, unique = 1, slug
        while unique in found:
            unique, number = f"{slug}{joint}{number}", number + 1
        found.add(unique)
    return found
