"""Text that every machine has: the documentation and source of its own Python installation."""

import sysconfig
from pathlib import Path

from krakenlm.errors import KrakenError

# Enough to train the demo's models on without repeating; more would only take longer to prepare.
_BYTES = 12 << 20
_SUFFIXES = (".py", ".rst", ".txt")
# Generated tables, tests and bundled copies are not what a reader would call text.
_LEFT_OUT = {"test", "tests", "site-packages", "encodings", "__pycache__", "_vendor", "_bundled"}


def python_installation_text() -> list[Path]:
    """Files of the standard library, documentation first, up to 12 MiB, in a fixed order.

    Raises:
        KrakenError: the installation has no source files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix in _SUFFIXES and not _LEFT_OUT.intersection(path.relative_to(root).parts)
    ]
    files.sort(key=lambda path: "pydoc_data" not in path.parts)
    chosen, size = [], 0
    for path in files:
        if _is_text(path):
            chosen.append(path)
            size += path.stat().st_size
        if size >= _BYTES:
            break
    if not chosen:
        raise KrakenError(f"no source files under {root}: choose a text with --text FILE")
    return chosen


def _is_text(path: Path) -> bool:
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False
