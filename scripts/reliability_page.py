"""The table of docs/reliability.md: what ``make test-reliability`` put down.

python scripts/reliability_page.py
"""

import json
from typing import Any

import markers
import recording

PAGE = recording.DOCS / "reliability.md"
RESULTS = recording.RESULTS / "reliability" / "checks.json"


def found() -> dict[str, Any]:
    """The checks, and where they ran."""
    values: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return values


def table() -> str:
    """A row a check, in the order in which they ran."""
    headings = ("what is done to it", "what happens", "asked for")
    rows = [(each["check"], each["found"], each["bar"]) for each in found()["checks"]]
    return markers.markdown(headings, rows, numbers=False)


def machine() -> str:
    """Where they ran."""
    here = found()["environment"]
    versions = f"Python {here['python']}, PyTorch {here['torch']}"
    return f"Measured on {here['machine']}, {here['cores']} cores, {versions}.\n"


TABLES: dict[str, markers.Table] = {"reliability": table, "reliability machine": machine}

if __name__ == "__main__":
    markers.rewrite([PAGE], TABLES)
