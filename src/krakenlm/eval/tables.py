"""The table of scores for the terminal: a row a model, a column a task."""

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from krakenlm.eval.official import TASKS, VALIDATION_FILE
from krakenlm.eval.report import EvalReport, TaskScore

ABSENT = "absent"
WIDTH = 160
"""A table that is not shown on a terminal is this wide at most, so that no cell is folded."""


def score_table(reports: Sequence[EvalReport]) -> Table:
    """Scores in per cent with standard errors; the mean is over the tasks that every row has."""
    tasks = _tasks(reports)
    shared = [task for task in tasks if all(report.score_of(task) for report in reports)]
    table = Table(
        title="SuperGLUE, zero-shot",
        title_justify="left",
        caption=_caption(reports),
        caption_justify="left",
    )
    table.add_column("model", justify="left")
    for task in tasks:
        table.add_column(task, justify="right")
    mean = "mean" if shared == tasks else f"mean of {len(shared)}"
    table.add_column(mean, justify="right")
    for report in reports:
        scores = {task: report.score_of(task) for task in tasks}
        cells = [_cell(score) for score in scores.values()]
        table.add_row(escape(report.name), *cells, _mean([scores[task] for task in shared]))
    return table


def remarks(report: EvalReport) -> list[str]:
    """What a reader of the row has to know beside the numbers, as lines."""
    lines = [f"{absence.task} is absent: {absence.reason}" for absence in report.absent]
    lines += [
        f"{score.task}: {score.truncated} requests were longer than the context of "
        f"{report.context} tokens and lost their beginning"
        for score in report.scores
        if score.truncated
    ]
    lines += [
        f"{score.task}: the examples are those of {score.source}, not the validation set"
        for score in report.scores
        if score.sha256 and score.source != f"{score.task}/{VALIDATION_FILE}"
    ]
    if report.limit:
        lines.append(f"at most {report.limit} examples of each task: no score to be published")
    return lines


def differences(reports: Sequence[EvalReport]) -> list[str]:
    """What makes these reports unfit to stand side by side, as lines."""
    found = []
    for what, values in (
        ("limits", {report.limit for report in reports}),
        ("versions of lm_eval", {report.lm_eval for report in reports}),
    ):
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values)))
            found.append(f"the models were evaluated with different {what}: {listed}")
    for task in _tasks(reports):
        scores = [score for report in reports if (score := report.score_of(task)) is not None]
        if len({(score.source, score.sha256, score.examples) for score in scores}) > 1:
            found.append(f"the models were asked different examples of {task}")
        if len({(score.harness_task, score.harness_version) for score in scores}) > 1:
            found.append(f"the models were asked {task} with different prompts")
    return found


def _tasks(reports: Sequence[EvalReport]) -> list[str]:
    """Every task that some row was asked for, in the order of SuperGLUE."""
    asked = {score.task for report in reports for score in report.scores}
    asked |= {absence.task for report in reports for absence in report.absent}
    return [*(task for task in TASKS if task in asked), *sorted(asked - TASKS.keys())]


def _cell(score: TaskScore | None) -> str:
    return ABSENT if score is None else _per_cent(score.score, score.standard_error)


def _mean(scores: Sequence[TaskScore | None]) -> str:
    present = [score for score in scores if score is not None]
    if not present:
        return ""
    errors = [score.standard_error for score in present if score.standard_error is not None]
    # The tasks' examples have nothing to do with each other: variances add up.
    error = math.hypot(*errors) / len(present) if len(errors) == len(present) else None
    return _per_cent(sum(score.score for score in present) / len(present), error)


def _per_cent(value: float, error: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _caption(reports: Sequence[EvalReport]) -> str:
    metrics = {score.task: score.metric for report in reports for score in report.scores}
    others = [f"{task}: {metric}" for task, metric in metrics.items() if metric != "acc"]
    measure = "accuracy" + (f" ({', '.join(others)})" if others else "")
    versions = ", ".join(sorted({report.lm_eval for report in reports}))
    return f"{measure} in per cent ± standard error; prompts and metrics of lm_eval {versions}"
