"""What clients of served models saw, with what is needed to repeat it; tables come from this."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from krakenlm.environment import Environment
from krakenlm.spread import Spread
from krakenlm.strict import read_report

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """What clients ask.

    Attributes:
        concurrency: requests under way at a time.
        input_len: tokens of a prompt.
        output_len: tokens of an answer.
        num_prompts: requests in all.
    """

    concurrency: int
    input_len: int
    output_len: int
    num_prompts: int


@dataclass(frozen=True, kw_only=True)
class Served:
    """What one model gave under one load, in one round.

    Attributes:
        model: its folder's name.
        wiring: its architecture.
        round: which of the report's rounds, from 0.
        load: what was asked.
        ttft_ms: median time to the first token.
        ttft_p99_ms: the 99th percentile.
        tpot_ms: median time per token behind the first.
        tokens_per_second: answers' tokens of all requests together.
    """

    model: str
    wiring: str
    round: int
    load: Load
    ttft_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class ServingReport:
    """Models under the same loads, round by round.

    Attributes:
        kind: tells these files from others of the project.
        schema_version: of this layout.
        devices: tensor-parallel ranks; 0 where the servers were somebody else's.
        flags: that vLLM was started with beside ``krakenlm serve``'s own.
        results: one entry a model, load and round.
        vllm: version of vLLM here, whose benchmark asked.
        environment: where, and with what else.
        command: what was typed.
    """

    kind: Literal["serving"] = "serving"
    schema_version: int = SCHEMA_VERSION
    devices: int
    flags: tuple[str, ...]
    results: tuple[Served, ...]
    vllm: str
    environment: Environment
    command: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: Path) -> "ServingReport":
        """Read what ``to_json`` gave.

        Raises:
            KrakenError: no such file, another schema, or keys and values that do not belong there.
        """
        return read_report(
            cls,
            path,
            "serving",
            SCHEMA_VERSION,
            what="a benchmark of served models",
            advice="give the JSON of an earlier krakenlm bench serve",
            again="measure again",
        )


HEADINGS = (
    "at a time", "model", "TTFT, ms", "p99, ms", "TPOT, ms", "tokens/s", "TTFT speedup",
    "TPOT speedup",
)  # fmt: skip


def rows(results: Sequence[Served]) -> list[list[str]]:
    """A row for each load and model, under ``HEADINGS``.

    Speedups are against the first model, taken within each round.
    """
    loads = sorted(dict.fromkeys(r.load for r in results), key=lambda load: load.concurrency)
    models = list(dict.fromkeys((r.model, r.wiring) for r in results))
    made = []
    for load in loads:
        first = _rounds(results, load, models[0][0])
        for model, wiring in models:
            found = _rounds(results, load, model)
            made.append(
                [
                    str(load.concurrency),
                    model if model == wiring else f"{model} ({wiring})",
                    Spread.of([r.ttft_ms for r in found]).text(1),
                    Spread.of([r.ttft_p99_ms for r in found]).text(1),
                    Spread.of([r.tpot_ms for r in found]).text(2),
                    Spread.of([r.tokens_per_second for r in found]).text(1),
                    _speedup([r.ttft_ms for r in first], [r.ttft_ms for r in found]),
                    _speedup([r.tpot_ms for r in first], [r.tpot_ms for r in found]),
                ]
            )
    return made


WIDTH = 120
"""A table that is not shown on a terminal is this wide at most, so that no cell is folded."""


def table(results: Sequence[Served]) -> Table:
    """``rows`` for the terminal."""
    drawn = Table(title="Served by vLLM", title_justify="left")
    for heading in HEADINGS:
        drawn.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows(results):
        drawn.add_row(*row)
    return drawn


def _rounds(results: Sequence[Served], load: Load, model: str) -> list[Served]:
    found = [r for r in results if r.load == load and r.model == model]
    return sorted(found, key=lambda r: r.round)


def _speedup(base: Sequence[float], other: Sequence[float]) -> str:
    return Spread.of([a / b for a, b in zip(base, other, strict=True)]).text(2, "×")
