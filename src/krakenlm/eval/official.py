"""What do the official SuperGLUE files hold, in the columns that the harness's tasks read?

SuperGLUE comes as JSON lines with nested passages and labels in words. The data set on the Hub,
which the harness's tasks are written for, has one flat row for each question to answer, and
numbers for labels. A file is turned into these rows here, example by example.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krakenlm.errors import KrakenError
from krakenlm.utf8 import how_to_convert, wide_encoding

VALIDATION_FILE = "val.jsonl"
"""What the official archive calls the labelled examples that models are compared on."""

Row = dict[str, Any]
_Rows = Callable[[Mapping[str, Any]], Iterable[Row]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One of the eight tasks.

    Attributes:
        name: of the task, and of its folder in the official archive.
        harness: what lm-evaluation-harness calls it.
        metric: the one that tables show.
        rows: turns a line of the official file into rows.
    """

    name: str
    harness: str
    metric: str
    rows: _Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """What a file gave.

    Attributes:
        rows: one for each question.
        source: the file's name and that of its folder.
        sha256: of the file.
    """

    rows: list[Row]
    source: str
    sha256: str


def find_file(folder: Path, task: Task, names: Sequence[str]) -> Path | None:
    """The first of ``folder/TASK/NAME`` that there is."""
    candidates = (folder / task.name / name for name in names)
    return next((path for path in candidates if path.is_file()), None)


def read_examples(path: Path, task: Task) -> Examples:
    """Read an official file.

    Raises:
        KrakenError: it cannot be read, or is not what the task's file should be; names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KrakenError(f"cannot read {path}: {error.strerror or error}") from error
    encoding = wide_encoding(data)
    if encoding is not None:
        raise KrakenError(f"{path} is {encoding} text: {how_to_convert(encoding)}")
    rows: list[Row] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows += task.rows(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise KrakenError(
                f"{path}:{number}: not a labelled example of {task.name} as SuperGLUE has it "
                f"({type(error).__name__}: {error}): give the official file"
            ) from error
    if len(rows) < 2:
        raise KrakenError(
            f"{path} has {len(rows)} examples: a score and its standard error need 2 or more"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    return Examples(rows=rows, source=f"{path.parent.name}/{path.name}", sha256=sha256)


def _flat(*columns: str, labels: Sequence[str | bool | int]) -> _Rows:
    """For files that have a row a line: take the columns, and the label as its number."""

    def rows(line: Mapping[str, Any]) -> Iterator[Row]:
        yield {
            **{column: line[column] for column in columns},
            "idx": line["idx"],
            "label": labels.index(line["label"]),
        }

    return rows


def _multirc(line: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each answer to each question about a paragraph."""
    passage = line["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {
                    "paragraph": line["idx"],
                    "question": question["idx"],
                    "answer": answer["idx"],
                },
                "label": (0, 1).index(answer["label"]),
            }


def _record(line: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each query about a passage, with the names that could fill it."""
    passage = line["passage"]
    text = passage["text"]
    # The end of an entity is its last character, not the one behind it.
    entities = {text[entity["start"] : entity["end"] + 1] for entity in passage["entities"]}
    for query in line["qas"]:
        answers = {answer["text"] for answer in query["answers"]}
        if not answers:
            raise ValueError("a query without answers")
        yield {
            "passage": text,
            "query": query["query"],
            "entities": sorted(entities),
            "answers": sorted(answers),
            "idx": {"passage": line["idx"], "query": query["idx"]},
        }


def _wsc(line: Mapping[str, Any]) -> Iterator[Row]:
    """The two spans moved up from ``target``, spelt as the text spells them."""
    text, target = line["text"], line["target"]
    yield {
        "text": text,
        "span1_index": target["span1_index"],
        "span2_index": target["span2_index"],
        "span1_text": _as_in_text(text, target["span1_text"], target["span1_index"]),
        "span2_text": _as_in_text(text, target["span2_text"], target["span2_index"]),
        "idx": line["idx"],
        "label": (False, True).index(line["label"]),
    }


def _as_in_text(text: str, span: str, index: int) -> str:
    """A span that does not stand in the text, with what the Hub's ``wsc.fixed`` puts right.

    That is the case of its first letter, taken from the word at ``index``; line breaks; and full
    stops at its end. Spans that other words interrupt stay as they are.
    """
    if span in text:
        return span
    lower = text.split()[index][0].islower()
    fixed = (span[0].lower() if lower else span[0].upper()) + span[1:]
    fixed = fixed.rstrip(".").replace("\n", " ")
    return fixed if fixed in text else span


_BOOLEANS = (False, True)
_WIC = ("word", "sentence1", "sentence2", "start1", "start2", "end1", "end2")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="BoolQ",
            harness="boolq",
            metric="acc",
            rows=_flat("question", "passage", labels=_BOOLEANS),
        ),
        Task(
            name="CB",
            harness="cb",
            metric="acc",
            rows=_flat("premise", "hypothesis", labels=("entailment", "contradiction", "neutral")),
        ),
        Task(
            name="COPA",
            harness="copa",
            metric="acc",
            rows=_flat("premise", "choice1", "choice2", "question", labels=(0, 1)),
        ),
        Task(name="MultiRC", harness="multirc", metric="acc", rows=_multirc),
        Task(name="ReCoRD", harness="record", metric="f1", rows=_record),
        Task(
            name="RTE",
            harness="sglue_rte",
            metric="acc",
            rows=_flat("premise", "hypothesis", labels=("entailment", "not_entailment")),
        ),
        Task(name="WiC", harness="wic", metric="acc", rows=_flat(*_WIC, labels=_BOOLEANS)),
        Task(name="WSC", harness="wsc", metric="acc", rows=_wsc),
    )
}
"""The eight tasks by name, in the order of tables."""


def chosen_tasks(names: str) -> list[Task]:
    """The tasks that ``--tasks`` names: ``superglue`` for all, or names with commas between.

    Raises:
        KrakenError: a name that is no task's.
    """
    by_name = {name.lower(): task for name, task in TASKS.items()}
    chosen: dict[str, Task] = {}
    for name in names.split(","):
        wanted = name.strip().lower()
        if wanted == "superglue":
            chosen |= TASKS
        elif wanted in by_name:
            chosen[by_name[wanted].name] = by_name[wanted]
        else:
            raise KrakenError(
                f"--tasks {names}: there is no task {name.strip()!r}: choose superglue, or some of "
                f"{', '.join(TASKS)}"
            )
    return [task for name, task in TASKS.items() if name in chosen]
