"""SuperGLUE through lm-evaluation-harness: its prompts and metrics, our models."""

import contextlib
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch

from krakenlm.config import with_sublayers
from krakenlm.console import notes
from krakenlm.environment import Environment, cores_here
from krakenlm.errors import KrakenError
from krakenlm.eval.harness_tasks import Asked, find_files, from_files, from_hub
from krakenlm.eval.model import check_directory, pick_device
from krakenlm.eval.official import VALIDATION_FILE, Task
from krakenlm.eval.report import Absence, Backend, EvalReport, TaskScore
from krakenlm.model.checkpoint import read_config
from krakenlm.overrides import changed


class HarnessModel(Protocol):
    """What a report needs of a model that the harness can ask.

    Attributes:
        parameters: of the whole model.
        dtype_name: of the number format that it computes in.
        max_length: tokens that a request may have.
        asked: requests for a likelihood so far.
        truncated: those of them that were longer and lost their beginning.
        device: where it computes; of several, the first.
        runtime: what runs it.
        devices: how many it is shared out to.
        sublayers: N, where another one than the model's own was asked for.
    """

    parameters: int
    dtype_name: str
    asked: int
    truncated: int
    runtime: Backend
    devices: int
    sublayers: int | None

    @property
    def max_length(self) -> int: ...  # noqa: D102  listed above

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def close(self) -> None:
        """End what was started for it; it is not asked again."""
        ...


def with_transformers(
    model: str | Path, device: str = "auto", sublayers: int | None = None
) -> Callable[[int], HarnessModel]:
    """Have the harness ask a model through Transformers; given a batch size, the result loads it.

    Args:
        model: a model directory with a tokenizer.
        device: ``auto``, ``cpu``, ``cuda``, ...
        sublayers: another N than the model's own, see ``krakenlm.config.with_sublayers``.

    Raises:
        KrakenError: no such device or model, or N is no choice for it.
    """
    check_directory(Path(model))
    if sublayers is not None:
        with_sublayers(read_config(Path(model)), sublayers)
    target = pick_device(device)

    def load(batch_size: int) -> HarnessModel:
        from krakenlm.eval.harness_model import KrakenLM

        return KrakenLM(str(model), device=str(target), batch_size=batch_size, sublayers=sublayers)

    return load


def require_harness() -> None:
    """Refuse to go on where lm-evaluation-harness is not installed.

    Raises:
        KrakenError: with the command that installs it.
    """
    if find_spec("lm_eval") is None:
        raise KrakenError(
            "lm-evaluation-harness, which asks the questions, is not installed: "
            "pip install 'krakenlm[eval]'"
        )


def evaluate(
    model: str | Path,
    tasks: Sequence[Task],
    *,
    data_dir: str | Path | None = None,
    data_files: Sequence[str] = (VALIDATION_FILE,),
    limit: int | None = None,
    batch_size: int = 8,
    load: Callable[[int], HarnessModel] | None = None,
    command: Sequence[str] = (),
) -> EvalReport:
    """Ask a model the questions of some tasks, zero-shot.

    Args:
        model: a model directory with a tokenizer.
        tasks: see ``krakenlm.eval.official.chosen_tasks``.
        data_dir: the official files, as ``data_dir/TASK/val.jsonl``; without it the harness loads
            its data from the Hugging Face Hub. A task without a file is reported as absent.
        data_files: names to look for in each task's folder; the first that is there is read.
        limit: examples of each task at most, the first ones; all if not given.
        batch_size: requests computed at once.
        load: loads the model for a batch size; with Transformers if not given.
        command: what was typed, for the report.

    Raises:
        KrakenError: harness, model or data are missing or damaged, or no task has a file.
    """
    _check_numbers(limit, batch_size)
    load = load or with_transformers(model)
    absent: tuple[Absence, ...] = ()
    files: list[tuple[Task, Path]] = []
    if data_dir is not None:
        files, absent = find_files(tasks, Path(data_dir), data_files)
    require_harness()
    with tempfile.TemporaryDirectory(prefix="krakenlm-eval-") as scratch, _quiet_harness(files):
        # The questions first: they are quick to refuse, a large model is slow to load.
        asked = from_files(files, Path(scratch)) if files else from_hub(tasks)
        lm = load(batch_size)
        try:
            scores = _scores(lm, asked, limit)
        finally:
            lm.close()
    return EvalReport(
        model=str(model),
        backend=lm.runtime,
        devices=lm.devices,
        sublayers=lm.sublayers,
        parameters=lm.parameters,
        dtype=lm.dtype_name,
        context=lm.max_length,
        scores=scores,
        absent=absent,
        limit=limit or 0,
        batch_size=batch_size,
        lm_eval=version("lm_eval"),
        datasets=version("datasets"),
        environment=_environment(lm.device),
        command=tuple(command),
    )


def _check_numbers(limit: int | None, batch_size: int) -> None:
    if batch_size < 1:
        raise KrakenError(f"batch size {batch_size} cannot work: choose at least 1")
    if limit is not None and limit < 2:
        raise KrakenError(
            f"a limit of {limit} cannot work: a score and its standard error need 2 examples or "
            "more; leave --limit out for all"
        )


def _environment(device: torch.device) -> Environment:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Environment.here(cores=len(cores_here()), gpu=gpu)


def _scores(lm: HarnessModel, asked: Sequence[Asked], limit: int | None) -> tuple[TaskScore, ...]:
    scores = []
    for index, each in enumerate(asked, 1):
        notes.print(f"{each.task.name}, task {index} of {len(asked)}", markup=False)
        scores.append(_score(lm, each, limit))
    return tuple(scores)


def _score(lm: HarnessModel, asked: Asked, limit: int | None) -> TaskScore:
    from lm_eval.evaluator import evaluate as ask

    before, truncated, name = lm.asked, lm.truncated, asked.task.harness
    found = ask(lm=lm, task_dict=asked.loaded, limit=limit, log_samples=False)
    if lm.asked == before:
        raise changed("lm-evaluation-harness asks models in a way of its own")
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in found["results"][name].items():
        metric, filtered, _ = key.partition(",")
        if not filtered or not isinstance(value, int | float):
            continue  # the task's name; a standard error that the harness has no formula for
        if metric.endswith("_stderr"):
            errors[metric.removesuffix("_stderr")] = float(value)
        else:
            metrics[metric] = float(value)
    return TaskScore(
        task=asked.task.name,
        metric=asked.task.metric,
        metrics=metrics,
        standard_errors=errors,
        examples=found["n-samples"][name]["effective"],
        truncated=lm.truncated - truncated,
        source=asked.source,
        sha256=asked.sha256,
        harness_task=name,
        harness_version=str(found["versions"][name]),
    )


@contextlib.contextmanager
def _quiet_harness(files: Sequence[object]) -> Iterator[None]:
    """Keep chatter off the terminal; what the harness prints is no result of ours.

    Bars of ``datasets`` show downloads. Where there are files, nothing is downloaded.
    """
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, shown = logging.getLogger("lm_eval"), not are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    if files:
        disable_progress_bars()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        if shown:
            enable_progress_bars()
