"""The scores of a model, with what is needed to repeat them; tables are drawn from these alone."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krakenlm.environment import Environment
from krakenlm.errors import ConfigError
from krakenlm.strict import read_report

SCHEMA_VERSION = 1

Backend = Literal["hf", "vllm"]
"""What runs a model: Transformers or vLLM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """What a model reached in one task.

    Attributes:
        task: the task's name.
        metric: the one that tables show, a key of ``metrics``.
        metrics: every metric the harness gives for the task, as shares of 1.
        standard_errors: of those metrics for which the harness gives one.
        examples: questions that were asked.
        truncated: requests that were longer than the model's context and lost their beginning.
        source: where the examples come from.
        sha256: of the file they come from; empty for the Hub's data set.
        harness_task: what the harness calls the task.
        harness_version: of the task's prompt and metrics, as the harness counts.
    """

    task: str
    metric: str
    metrics: dict[str, float]
    standard_errors: dict[str, float]
    examples: int
    truncated: int
    source: str
    sha256: str
    harness_task: str
    harness_version: str

    def __post_init__(self) -> None:
        for name in ("metrics", "standard_errors"):
            for metric, value in getattr(self, name).items():
                if not math.isfinite(value):
                    raise ConfigError(f"{name}.{metric}={value!r}: needs a number")
        if self.metric not in self.metrics:
            raise ConfigError(f"metric={self.metric!r}: needs one of {', '.join(self.metrics)}")

    @property
    def score(self) -> float:
        """What tables show."""
        return self.metrics[self.metric]

    @property
    def standard_error(self) -> float | None:
        """Of the score, where there is one."""
        return self.standard_errors.get(self.metric)


@dataclass(frozen=True, kw_only=True, slots=True)
class Absence:
    """A task that was asked for and could not be run."""

    task: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """The scores of one model.

    Attributes:
        kind: tells these files from others of the project.
        schema_version: of this layout.
        model: its directory, as it was given.
        backend: what ran it.
        devices: how many it was shared out to.
        sublayers: N, where another one than the model's own was asked for.
        parameters: of the whole model.
        dtype: that it computed in.
        context: tokens that a request may have.
        scores: one entry a task.
        absent: tasks that were asked for and could not be run.
        limit: examples of each task at most, the first ones; 0 is all.
        batch_size: requests computed at once.
        lm_eval: version of lm-evaluation-harness.
        datasets: version of Hugging Face ``datasets``.
        environment: where, and with what else.
        command: what was typed.
    """

    kind: Literal["superglue"] = "superglue"
    schema_version: int = SCHEMA_VERSION
    model: str
    backend: Backend = "hf"
    devices: int = 1
    sublayers: int | None = None
    parameters: int
    dtype: str
    context: int
    scores: tuple[TaskScore, ...]
    absent: tuple[Absence, ...]
    limit: int
    batch_size: int
    lm_eval: str
    datasets: str
    environment: Environment
    command: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.model if self.sublayers is None else f"{self.model}, N={self.sublayers}"

    def score_of(self, task: str) -> TaskScore | None:
        """The entry of a task, where it was run."""
        return next((score for score in self.scores if score.task == task), None)

    @classmethod
    def load(cls, path: Path) -> "EvalReport":
        """Read what ``to_json`` gave.

        Raises:
            KrakenError: no such file, another schema, or keys and values that do not belong there.
        """
        return read_report(
            cls,
            path,
            "superglue",
            SCHEMA_VERSION,
            what="an evaluation",
            advice="give the JSON of an earlier krakenlm eval",
            again="evaluate again",
        )
