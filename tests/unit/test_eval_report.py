"""Reports of scores: read strictly, and drawn as a table that hides nothing."""

import dataclasses
import json
from typing import Any

import pytest
from rich.console import Console

from krakenlm.environment import Environment
from krakenlm.errors import KrakenError
from krakenlm.eval.report import SCHEMA_VERSION, Absence, EvalReport, TaskScore
from krakenlm.eval.tables import WIDTH, differences, remarks, score_table

ENVIRONMENT = Environment(
    machine="a machine",
    cores=2,
    python="3.11",
    torch="2",
    transformers="5",
    krakenlm="0",
    commit="",
)


def score(task: str, value: float, error: float | None = 0.05, **changes: Any) -> TaskScore:
    metric = changes.get("metric", "acc")
    return dataclasses.replace(
        TaskScore(
            task=task,
            metric=metric,
            metrics={metric: value},
            standard_errors={} if error is None else {metric: error},
            examples=10,
            truncated=0,
            source=f"{task}/val.jsonl",
            sha256="0" * 64,
            harness_task=task.lower(),
            harness_version="1.0",
        ),
        **changes,
    )


def report(*scores: TaskScore, **changes: Any) -> EvalReport:
    return dataclasses.replace(
        EvalReport(
            model="a",
            parameters=1000,
            dtype="float32",
            context=64,
            scores=scores,
            absent=(),
            limit=0,
            batch_size=8,
            lm_eval="0.4",
            datasets="5",
            environment=ENVIRONMENT,
            command=("krakenlm", "eval"),
        ),
        **changes,
    )


def drawn(*reports: EvalReport) -> list[list[str]]:
    """The cells of the heading and of each row."""
    console = Console(width=WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(score_table(reports))
    lines = capture.get().splitlines()
    bars = [line.replace("┃", "│") for line in lines if line[:1] in ("┃", "│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in bars]


def test_a_row_a_model_a_column_a_task_and_the_mean():
    one = report(score("COPA", 0.5, 0.03), score("BoolQ", 0.62, 0.04))
    other = report(score("BoolQ", 0.7, 0.01), score("COPA", 0.55, None), model="[b]")
    assert drawn(one, other) == [
        ["model", "BoolQ", "COPA", "mean"],
        ["a", "62.0 ± 4.0", "50.0 ± 3.0", "56.0 ± 2.5"],
        ["[b]", "70.0 ± 1.0", "55.0", "62.5"],
    ]


def test_what_is_absent_says_so_and_the_mean_is_over_what_all_rows_have():
    absence = Absence(task="WSC", reason="WSC holds no val.jsonl")
    one = report(score("BoolQ", 0.6, 0.03), score("ReCoRD", 0.2, metric="f1"), absent=(absence,))
    other = report(score("BoolQ", 0.8, 0.04), score("WSC", 0.5))
    assert drawn(one, other) == [
        ["model", "BoolQ", "ReCoRD", "WSC", "mean of 1"],
        ["a", "60.0 ± 3.0", "20.0 ± 5.0", "absent", "60.0 ± 3.0"],
        ["a", "80.0 ± 4.0", "absent", "50.0 ± 5.0", "80.0 ± 4.0"],
    ]
    assert remarks(one) == ["WSC is absent: WSC holds no val.jsonl"]
    assert "(ReCoRD: f1)" in str(score_table([one]).caption)


def test_rows_without_a_common_task_have_no_mean():
    rows = drawn(report(score("BoolQ", 0.6)), report(score("WSC", 0.5)))
    assert rows[0][-1] == "mean of 0"
    assert [row[-1] for row in rows[1:]] == ["", ""]


def test_remarks_name_limits_and_lost_contexts():
    other = score("COPA", 0.1, source="COPA/train.jsonl")
    found = remarks(report(score("BoolQ", 0.6, truncated=3), score("CB", 0.1), other, limit=5))
    assert len(found) == 3
    assert found[0].startswith("BoolQ: 3 requests were longer than the context of 64 tokens")
    assert found[1] == "COPA: the examples are those of COPA/train.jsonl, not the validation set"
    assert found[2].startswith("at most 5 examples")


def test_differences_that_make_rows_unfit_to_compare_are_named():
    one = report(score("BoolQ", 0.6), score("CB", 0.1))
    assert differences([one, report(score("BoolQ", 0.9))]) == []
    assert differences([one]) == []
    changed = report(score("BoolQ", 0.6, sha256="1" * 64), score("CB", 0.1, harness_version="2.0"))
    assert differences([one, changed]) == [
        "the models were asked different examples of BoolQ",
        "the models were asked CB with different prompts",
    ]
    limited = report(score("BoolQ", 0.6, examples=4), limit=4, lm_eval="0.5")
    assert differences([one, limited]) == [
        "the models were evaluated with different limits: 0, 4",
        "the models were evaluated with different versions of lm_eval: 0.4, 0.5",
        "the models were asked different examples of BoolQ",
    ]


def test_a_report_is_read_as_it_was_written(tmp_path):
    whole = report(
        score("CB", 0.1, metrics={"acc": 0.1, "f1": 0.2}),
        absent=(Absence(task="WSC", reason="none"),),
    )
    path = tmp_path / "report.json"
    path.write_text(json.dumps(whole.to_json()))
    assert EvalReport.load(path) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("kind"), "is no evaluation"),
        (lambda v: v.update(kind="latency"), "is no evaluation"),
        (
            lambda v: v.update(schema_version=SCHEMA_VERSION + 1),
            "schema version 2, .* above 1",
        ),
        (lambda v: v.update(colour="red"), "unknown key 'colour'"),
        (lambda v: v.pop("context"), "context is missing"),
        (lambda v: v.update(limit="all"), "limit='all'"),
        (lambda v: v["scores"][0].pop("source"), "source is missing"),
        (lambda v: v["scores"][0].update(metric="f1"), "metric='f1': needs one of acc"),
        (lambda v: v["scores"][0]["metrics"].update(acc="high"), "metrics.acc='high'"),
        (lambda v: v["scores"][0]["metrics"].update(acc=float("nan")), "metrics.acc=nan"),
        (lambda v: v["environment"].pop("commit"), "commit is missing"),
    ],
)
def test_a_report_that_is_none_is_refused(tmp_path, change, message):
    values = json.loads(json.dumps(report(score("BoolQ", 0.6)).to_json()))
    change(values)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(values))
    with pytest.raises(KrakenError, match=message) as caught:
        EvalReport.load(path)
    assert "report.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(KrakenError, match=r"report\.json"):
        EvalReport.load(path)
