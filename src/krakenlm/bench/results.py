"""Typed results with what is needed to repeat them; pictures and tables are drawn from these."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krakenlm.config import WiringName
from krakenlm.environment import Environment
from krakenlm.spread import Quantiles
from krakenlm.strict import read_report

SCHEMA_VERSION = 5
REAL_LINK = "real"
BASELINE: WiringName = "standard"
"""The wiring that speedups are over."""

PART_NAMES = {
    "norm": "Norm",
    "gemm": "GEMM",
    "overlapped_gemm": "overlapped GEMM",
    "attention": "Attention",
    "allreduce": "AllReduce",
    "lm_head": "LM head",
    "other": "other",
}
"""What a prefill consists of, with names for people (see ``krakenlm.bench.breakdown``)."""


@dataclass(frozen=True, kw_only=True)
class ModelLatency:
    """What one model took. None is what was not measured, or does not exist for it.

    Attributes:
        wiring: its architecture.
        label: what tells it from the other models of the report.
        parameters: of the whole model.
        ttft_ms: time to first token, from the prompt's ids on every rank to the token's on rank 0.
        no_comm_ttft_ms: the same with communication left out, on the slowest rank: the bound for
            any overlap.
        variant: the rule that a Kraken was derived by.
        late_layers: those whose sums the wiring hides, where others await theirs.
        prefill_chunks: parts that the prompt was computed in.
        units: sub-layers, or key and value heads, that each rank held.
        tpot_ms: time per token after the first: (latency - TTFT) / (output tokens - 1).
        latency_ms: until the last token.
        no_comm_tpot_ms: ``tpot_ms`` with communication left out.
        allreduces: sums over ranks in one prefill.
        message_bytes: of the largest one.
        allreduce_ms: the largest one alone.
        communication_ms: all of a prefill's sums one after the other, without compute.
        exposed_ms: what communication adds to the first token: TTFT less its bound, by round.
        hidden_share: how much of ``communication_ms`` is not exposed, 0 to 1.
        hideable_share: how much of the sums that have compute to hide behind was hidden.
        speedup: time to first token of the first standard model over this one's, by round.
        speedup_spread: of that ratio.
        tpot_speedup: the same ratio for the time per token.
        breakdown_ms: what rank 0 spent a prefill on; the parts add up to it.
    """

    wiring: str
    label: str
    parameters: int
    ttft_ms: Quantiles
    no_comm_ttft_ms: Quantiles
    variant: str | None = None
    late_layers: str | None = None
    prefill_chunks: int | None = None
    units: tuple[int, ...] | None = None
    tpot_ms: Quantiles | None = None
    latency_ms: Quantiles | None = None
    no_comm_tpot_ms: Quantiles | None = None
    allreduces: int | None = None
    message_bytes: int | None = None
    allreduce_ms: Quantiles | None = None
    communication_ms: Quantiles | None = None
    exposed_ms: Quantiles | None = None
    hidden_share: float | None = None
    hideable_share: float | None = None
    speedup: float | None = None
    speedup_spread: Quantiles | None = None
    tpot_speedup: float | None = None
    breakdown_ms: dict[str, float] | None = None

    @property
    def name(self) -> str:
        """The label, with the number of chunks where there are several."""
        chunks = self.prefill_chunks or 1
        return self.label if chunks == 1 else f"{self.label}, {chunks} chunks"

    @property
    def reduction_percent(self) -> float | None:
        """The speedup as a reduction of the time to first token, in per cent."""
        return None if self.speedup is None else 100 * (1 - 1 / self.speedup)


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """Latencies measured in one run, models interleaved.

    Attributes:
        kind: tells these files from others of the project.
        schema_version: of this layout.
        title: what was measured.
        devices: ranks.
        input_len: tokens of each prompt.
        dtype: of weights, cache and messages.
        iterations: rounds that count.
        environment: where, and with what.
        results: one entry a model.
        command: what was typed.
        size: the standard shape's name; its weights are random.
        model: or the folder whose weights all of them have.
        batch_size: prompts at once.
        output_len: tokens generated for each.
        warm_up: rounds before those that count.
        link: ``real``, or ``emulated: `` and the model's numbers.
        transport: what carried the messages.
        emulation: what was not there of the ranks, and what stood for it.
        graph_prefill: prompts were captured passes as well.
        placement: as asked for; it applies to Kraken.
        tensor_parallel: ranks that share a Kraken sub-layer.
        peak_rss_bytes: most memory that each rank's process ever held, all models together.
    """

    kind: Literal["latency"] = "latency"
    schema_version: int = SCHEMA_VERSION
    title: str
    devices: int
    input_len: int
    dtype: str
    iterations: int
    environment: Environment
    results: tuple[ModelLatency, ...]
    command: tuple[str, ...] | None = None
    size: str | None = None
    model: str | None = None
    batch_size: int | None = None
    output_len: int | None = None
    warm_up: int | None = None
    link: str | None = None
    transport: str | None = None
    emulation: str | None = None
    graph_prefill: bool = False
    placement: str | None = None
    tensor_parallel: int | None = None
    peak_rss_bytes: tuple[int, ...] | None = None

    @property
    def conditions(self) -> str:
        """Link, transport, dtype, devices and machine, in one line for people."""
        if self.devices == 1:
            return f"{self.dtype}; 1 device; {self.environment}"
        link = None if self.link is None else link_in_words(self.link)
        devices = f"{self.devices} devices"
        parts = (link, self.transport, self.dtype, devices, str(self.environment), self.emulation)
        return "; ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        for entry, result in zip(values["results"], self.results, strict=True):
            entry["reduction_percent"] = result.reduction_percent
        return values

    @classmethod
    def load(cls, path: Path) -> "LatencyReport":
        """Read a report, also an earlier version's, or the one in a demo's ``results.json``.

        What an earlier version did not say is None.

        Raises:
            KrakenError: no such file, another schema, or not a report.
        """
        return read_report(
            cls,
            path,
            "latency",
            SCHEMA_VERSION,
            what="a latency report",
            advice="give the JSON of an earlier krakenlm bench latency, or measure again",
            again="measure again",
            current=in_this_layout,
        )


def link_in_words(link: str) -> str:
    """A report's ``link`` for people, who must not take an emulated one for a real one."""
    return f"{link} link" if link == REAL_LINK else f"link {link}"


def in_this_layout(values: dict[str, Any]) -> dict[str, Any]:
    """Without what follows from the rest, and as one of this version where it is older.

    Version 1 knew the first token of one model a wiring, and speedups of medians. Up to version 2
    no kind was written, up to version 3 all weights were random, and up to version 4 nothing was
    said of emulation.
    """
    values = dict(values.get("first_token", values))
    version = values["schema_version"]
    results = [dict(entry) for entry in values["results"]]
    for entry in results:
        entry.pop("reduction_percent", None)
    values["results"] = results
    if version == 1:
        values["input_len"] = values.pop("prompt_tokens")
        values["iterations"] = values.pop("repetitions")
        values["results"] = [{"label": entry["wiring"], **entry} for entry in results]
    if version in (1, 2) and "kind" not in values:
        values |= {"kind": "latency", "schema_version": SCHEMA_VERSION}
    if version in (3, 4):
        values["schema_version"] = SCHEMA_VERSION
    return values
