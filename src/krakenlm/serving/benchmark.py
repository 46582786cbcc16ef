"""``krakenlm bench serve``: served models against each other, by vLLM's own benchmark.

Each model is served in turn and asked by ``vllm bench serve``, which sends random prompts of one
length and measures what a client sees.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from krakenlm.console import notes
from krakenlm.errors import KrakenError
from krakenlm.model.checkpoint import read_config
from krakenlm.serving.serve import Launch, running


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
    """What one model gave under one load.

    Attributes:
        model: its folder's name.
        wiring: its architecture.
        load: what was asked.
        ttft_ms: median time to the first token.
        ttft_p99_ms: the 99th percentile.
        tpot_ms: median time per token behind the first.
        tokens_per_second: answers' tokens of all requests together.
    """

    model: str
    wiring: str
    load: Load
    ttft_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    tokens_per_second: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def measure(
    models: Sequence[Path], devices: int, loads: Sequence[Load], flags: Sequence[str]
) -> list[Served]:
    """Serve each model in turn and measure it under each load.

    Args:
        models: checkpoint folders with tokenizers.
        devices: tensor-parallel ranks.
        loads: in order.
        flags: of ``vllm serve``, for every model.

    Raises:
        KrakenError: no vLLM, no such model, or requests that failed.
    """
    wirings = [read_config(model).wiring for model in models]  # before anything is started
    results = []
    for model, wiring in zip(models, wirings, strict=True):
        with running(model, devices, flags) as launch:
            for load in loads:
                notes.print(f"{launch.model}: {load.concurrency} at a time", markup=False)
                found = _ask(launch, model, load)
                results.append(summary(found, launch.model, wiring, load))
    return results


def summary(found: dict[str, Any], model: str, wiring: str, load: Load) -> Served:
    """What matters of a result of ``vllm bench serve``.

    Raises:
        KrakenError: not every request was answered.
    """
    if found["completed"] != load.num_prompts:
        raise KrakenError(
            f"{model}: {found['completed']} of {load.num_prompts} requests were answered: "
            "read what the server said"
        )
    return Served(
        model=model,
        wiring=wiring,
        load=load,
        ttft_ms=found["median_ttft_ms"],
        ttft_p99_ms=found["p99_ttft_ms"],
        tpot_ms=found["median_tpot_ms"],
        tokens_per_second=found["output_throughput"],
    )


def table(results: Sequence[Served]) -> Table:
    """A line for each concurrency and model; a speedup is against the first model."""
    drawn = Table(title="Served by vLLM", title_justify="left")
    drawn.add_column("at a time", justify="right")
    drawn.add_column("model")
    for heading in ("TTFT, ms", "p99", "TPOT, ms", "tokens/s", "TTFT speedup"):
        drawn.add_column(heading, justify="right")
    first = {r.load: r for r in reversed(results)}
    for result in sorted(results, key=lambda r: r.load.concurrency):
        drawn.add_row(
            str(result.load.concurrency),
            f"{result.model} ({result.wiring})",
            f"{result.ttft_ms:.1f}",
            f"{result.ttft_p99_ms:.1f}",
            f"{result.tpot_ms:.2f}",
            f"{result.tokens_per_second:.1f}",
            f"{first[result.load].ttft_ms / result.ttft_ms:.2f}×",
        )
    return drawn


def _ask(launch: Launch, tokenizer: Path, load: Load) -> dict[str, Any]:
    """Run vLLM's benchmark against a server; returns what it measured."""
    with tempfile.TemporaryDirectory(prefix="krakenlm-bench-") as folder:
        result = Path(folder) / "result.json"
        options = {
            "--base-url": launch.url,
            "--model": launch.model,
            "--tokenizer": str(tokenizer),
            "--dataset-name": "random",
            "--random-input-len": load.input_len,
            "--random-output-len": load.output_len,
            "--num-prompts": load.num_prompts,
            "--max-concurrency": load.concurrency,
            "--num-warmups": load.concurrency,
            "--percentile-metrics": "ttft,tpot",
            "--result-dir": folder,
            "--result-filename": result.name,
        }
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
        command += ["--ignore-eos", "--save-result", "--disable-tqdm"]
        command += [str(part) for option in options.items() for part in option]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode or not result.is_file():
            said = run.stderr.strip().splitlines() or ["it said nothing"]
            raise KrakenError(f"vllm bench serve failed: {said[-1]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found
