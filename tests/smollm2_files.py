"""Where SmolLM2 is, for tests that need it: what ``make smollm2`` has fetched and converted."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("KRAKENLM_SMOLLM2") or Path(__file__).parents[1] / "runs")
QUESTIONS = ["Why is the sky blue?", "What is the capital of France?"]
SYSTEM = "You answer in one sentence."


def file_or_skip(name: str) -> Path:
    """Of ``smollm2.gguf`` and ``smollm2``, the one of this name."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(
            f"needs SmolLM2: no {path}: run `make smollm2`, or set KRAKENLM_SMOLLM2 to the folder "
            "that it has filled elsewhere"
        )
    return path
