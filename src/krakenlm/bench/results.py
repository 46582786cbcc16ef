"""Typed results with what is needed to repeat them; pictures and tables are drawn from these."""

import dataclasses
import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from krakenlm.errors import KrakenError

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Middle and spread of repeated measurements."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles":
        """Median, 10th and 90th percentile; needs two values or more."""
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(median=statistics.median(values), p10=tenths[0], p90=tenths[-1])


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a result was measured, and with what."""

    machine: str
    cores: int
    python: str
    torch: str
    transformers: str
    krakenlm: str
    commit: str

    @classmethod
    def here(cls, cores: int) -> "Environment":
        """This machine and this checkout."""
        return cls(
            machine=_processor(),
            cores=cores,
            python=platform.python_version(),
            torch=version("torch"),
            transformers=version("transformers"),
            krakenlm=version("krakenlm"),
            commit=_commit(),
        )


@dataclass(frozen=True, kw_only=True)
class WiringLatency:
    """Time to the first token of one wiring.

    Attributes:
        wiring: its name.
        parameters: of the whole model.
        ttft_ms: from the prompt's ids on every rank to the token's id on rank 0.
        no_comm_ttft_ms: the same with communication left out: the bound for any overlap.
        speedup: over the standard wiring, of medians.
    """

    wiring: str
    parameters: int
    ttft_ms: Quantiles
    no_comm_ttft_ms: Quantiles
    speedup: float

    @property
    def reduction_percent(self) -> float:
        """The speedup as a reduction of the latency, in per cent."""
        return 100 * (1 - 1 / self.speedup)


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """First-token latencies measured in one run, wirings interleaved."""

    title: str
    devices: int
    prompt_tokens: int
    dtype: str
    repetitions: int
    environment: Environment
    results: tuple[WiringLatency, ...]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: Path) -> "LatencyReport":
        """Read a report that this version wrote.

        Raises:
            KrakenError: another schema, or not a report.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema_version"] != SCHEMA_VERSION:
                raise KeyError("schema_version")
            results = tuple(
                WiringLatency(
                    **{
                        **entry,
                        "ttft_ms": Quantiles(**entry["ttft_ms"]),
                        "no_comm_ttft_ms": Quantiles(**entry["no_comm_ttft_ms"]),
                    }
                )
                for entry in values.pop("results")
            )
            environment = Environment(**values.pop("environment"))
            return cls(**values, environment=environment, results=results)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KrakenError(
                f"{path} is not a latency report of this version: measure again"
            ) from error


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, ``+`` behind it where it was changed; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments],  # noqa: S607  git is found on the path
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
