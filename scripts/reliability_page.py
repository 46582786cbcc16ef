"""The table of docs/reliability.md: what ``make test-reliability`` put down.

python scripts/reliability_page.py
"""

import json
from typing import Any

import markers
import recording

PAGE = recording.DOCS / "reliability.md"
RESULTS = recording.RESULTS / "reliability"
_PARTS = ("ranks", "vllm", "files")


def found() -> list[dict[str, Any]]:
    """The checks of each part, and where they ran."""
    files = (RESULTS / f"{part}.json" for part in _PARTS)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def table() -> str:
    """A row a check."""
    headings = ("what is done to it", "what happens", "asked for")
    checks = [each for part in found() for each in part["checks"]]
    rows = [(each["check"], each["found"], each["bar"]) for each in checks]
    return markers.markdown(headings, rows, numbers=False)


def machine() -> str:
    """Where they ran."""
    here = found()[0]["environment"]
    versions = f"Python {here['python']}, PyTorch {here['torch']}"
    return f"Measured on {here['machine']}, {here['cores']} cores, {versions}.\n"


TABLES: dict[str, markers.Table] = {"reliability": table, "reliability machine": machine}

if __name__ == "__main__":
    markers.rewrite([PAGE], TABLES)
