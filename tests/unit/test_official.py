"""Official SuperGLUE files become the rows that the harness's tasks read."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

import superglue_files
from krakenlm.errors import KrakenError
from krakenlm.eval.official import TASKS, chosen_tasks, find_file, read_examples
from krakenlm.eval.squad_metrics import compute_exact, compute_f1

SHARED = Path(__file__).parents[2] / "../shared/data/superglue"


@pytest.fixture
def folder(tmp_path):
    return superglue_files.write(tmp_path / "superglue")


def rows_of(folder, task):
    return read_examples(folder / task / "val.jsonl", TASKS[task]).rows


def test_rows_of_flat_tasks_keep_their_columns_and_have_numbers_for_labels(folder):
    assert rows_of(folder, "BoolQ")[2] == {
        "question": "is the lake salty",
        "passage": "The lake is fed by a river of fresh water.",
        "idx": 2,
        "label": 0,
    }
    assert [row["label"] for row in rows_of(folder, "BoolQ")] == [1, 1, 0, 0, 1]
    assert [row["label"] for row in rows_of(folder, "CB")] == [0, 1, 2, 0]
    assert [row["label"] for row in rows_of(folder, "COPA")] == [0, 1, 0, 1]
    assert [row["label"] for row in rows_of(folder, "RTE")] == [0, 1, 1]
    assert [row["label"] for row in rows_of(folder, "WiC")] == [1, 0, 0]
    assert rows_of(folder, "WiC")[1] == {
        "word": "bank",
        "sentence1": "The bank of the river.",
        "sentence2": "The bank lends money.",
        "start1": 4,
        "start2": 4,
        "end1": 8,
        "end2": 8,
        "idx": 1,
        "label": 0,
    }


def test_encodings_of_official_files(folder):
    path = folder / "BoolQ" / "val.jsonl"
    rows, content = rows_of(folder, "BoolQ"), path.read_text(encoding="utf-8")
    path.write_text(content, encoding="utf-8-sig")
    assert rows_of(folder, "BoolQ") == rows
    path.write_text(content, encoding="utf-16")
    with pytest.raises(
        KrakenError, match=r"val\.jsonl is UTF-16 text: convert it, iconv -f UTF-16"
    ):
        rows_of(folder, "BoolQ")


def test_multirc_gives_a_row_for_each_answer(folder):
    rows = rows_of(folder, "MultiRC")
    assert [row["answer"] for row in rows] == [
        "Anna", "Her brother", "Plums", "Pears", "What Anna picked",
    ]  # fmt: skip
    assert [row["label"] for row in rows] == [1, 0, 1, 0, 1]
    assert rows[3] == {
        "paragraph": "Anna picked plums. Her brother carried them home.",
        "question": "What was carried home?",
        "answer": "Pears",
        "idx": {"paragraph": 7, "question": 4, "answer": 13},
        "label": 0,
    }


def test_record_gives_a_row_for_each_query_with_every_name_once(folder):
    rows = rows_of(folder, "ReCoRD")
    assert rows[1] == {
        "passage": superglue_files.RECORD[0]["passage"]["text"],
        "query": "@placeholder wrote about it",
        "entities": ["Ada Byron", "Charles", "London"],
        "answers": ["Ada Byron"],
        "idx": {"passage": 20, "query": 41},
    }
    assert [row["answers"] for row in rows[:3]] == [["Charles"], ["Ada Byron"], ["Porto"]]


def test_wsc_has_its_spans_beside_the_text(folder):
    assert rows_of(folder, "WSC")[0] == {
        "text": "Ben thanked Tom because he had helped.",
        "span1_index": 2,
        "span2_index": 4,
        "span1_text": "Tom",
        "span2_text": "he",
        "idx": 0,
        "label": 1,
    }


@pytest.mark.parametrize(
    ("text", "span", "index", "fixed"),
    [
        ("the cat sat", "The cat", 0, "the cat"),
        ("Then They left", "they", 1, "They"),
        ("it was his.", "his", 2, "his"),
        ("look at him go", "him.", 2, "him"),
        ("a long\nname here", "long\nname", 1, "long\nname"),
        ("a long name here", "long\nname", 1, "long name"),
        ("Kamenev saw that Zinoviev left", "Kamenev and Zinoviev", 0, "Kamenev and Zinoviev"),
    ],
)
def test_wsc_spans_are_spelt_as_the_text_spells_them(tmp_path, text, span, index, fixed):
    line = {
        "text": text,
        "target": {
            "span1_text": span,
            "span1_index": index,
            "span2_text": span,
            "span2_index": index,
        },
        "idx": 0,
        "label": True,
    }
    path = tmp_path / "val.jsonl"
    path.write_text(2 * (json.dumps(line) + "\n"))
    row = read_examples(path, TASKS["WSC"]).rows[0]
    assert (row["span1_text"], row["span2_text"]) == (fixed, fixed)


def test_the_source_is_recorded(folder):
    import hashlib

    found = read_examples(folder / "COPA" / "val.jsonl", TASKS["COPA"])
    data = (folder / "COPA" / "val.jsonl").read_bytes()
    assert (found.source, found.sha256) == ("COPA/val.jsonl", hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("task", TASKS)
def test_an_example_without_a_label_or_with_another_one_is_named(folder, task):
    lines = copy.deepcopy(superglue_files.FILES[task])
    holders = {
        "MultiRC": lambda line: line["passage"]["questions"][0]["answers"][0],
        "ReCoRD": lambda line: line["qas"][0],
    }
    last = holders.get(task, lambda line: line)(lines[-1])
    key = "answers" if task == "ReCoRD" else "label"
    path = folder / task / "val.jsonl"
    for damage in (lambda: last.pop(key), lambda: last.update({key: "perhaps"})):
        damage()
        path.write_text("\n".join(map(json.dumps, lines)))
        where = rf"val\.jsonl:{len(lines)}: not a labelled example of {task}"
        with pytest.raises(KrakenError, match=where) as caught:
            read_examples(path, TASKS[task])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "7", '"text"', "{}", "\xff"])
def test_lines_that_are_no_examples_are_named(tmp_path, text):
    path = tmp_path / "val.jsonl"
    path.write_bytes(b"\n" + text.encode("latin-1"))
    with pytest.raises(KrakenError, match=r"val\.jsonl:2: not a labelled example of CB"):
        read_examples(path, TASKS["CB"])


def test_one_example_is_too_few(tmp_path):
    path = tmp_path / "val.jsonl"
    path.write_text(json.dumps(superglue_files.CB[0]) + "\n\n")
    with pytest.raises(KrakenError, match=r"has 1 examples: .* 2 or more"):
        read_examples(path, TASKS["CB"])


def test_files_are_looked_for_in_the_order_of_their_names(folder):
    (folder / "CB" / "other.jsonl").write_text("")
    find = lambda *names: find_file(folder, TASKS["CB"], names)  # noqa: E731
    assert find("other.jsonl", "val.jsonl") == folder / "CB" / "other.jsonl"
    assert find("gone.jsonl", "val.jsonl") == folder / "CB" / "val.jsonl"
    assert find("gone.jsonl") is None


def test_tasks_are_chosen_by_name():
    names = lambda text: [task.name for task in chosen_tasks(text)]  # noqa: E731
    assert names("superglue") == list(TASKS) and len(TASKS) == 8
    assert names("wsc, BOOLQ,wsc") == ["BoolQ", "WSC"]
    assert names("superglue,CB") == list(TASKS)
    with pytest.raises(KrakenError, match="no task 'glue': choose superglue, or some of BoolQ"):
        chosen_tasks("CB,glue")


@pytest.mark.parametrize(
    ("task", "name", "examples"),
    [
        ("BoolQ", "val", 3270),
        ("CB", "val", 56),
        ("COPA", "val", 100),
        ("MultiRC", "val", 4848),
        ("RTE", "val", 277),
        ("ReCoRD", "train_sample32", None),
        ("WiC", "train_sample32", 32),
        ("WSC", "train_sample32", 32),
    ],
)
def test_the_official_files_themselves(task, name, examples):
    path = SHARED / task / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no official {task} file in ../shared/data/superglue")
    rows = read_examples(path, TASKS[task]).rows
    if examples is not None:
        assert len(rows) == examples
    if task == "ReCoRD":
        assert len(rows) >= 32
        for row in rows:
            assert set(row["answers"]) <= set(row["entities"])
            assert "@placeholder" in row["query"]
    if task == "WSC":
        for row in rows:
            assert row["span1_text"] in row["text"] and row["span2_text"] in row["text"]
            word = row["text"].split()[row["span2_index"]]
            assert word.startswith(row["span2_text"].split()[0])


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "f1"),
    [
        ("The U.S. Senate", "us senate", 1, 1.0),
        ("Barack Obama", "Obama", 0, 2 / 3),
        ("a b b c", "b b d", 0, 2 * 2 / (3 + 3)),
        ("London", "Paris", 0, 0.0),
        ("the", "An", 1, 1.0),
        ("the", "Paris", 0, 0.0),
        ("a the-ory", "theory!", 1, 1.0),
    ],
)
def test_squad_s_measures_of_an_answer(gold, answer, exact, f1):
    for pair in ((gold, answer), (answer, gold)):
        assert compute_exact(*pair) == exact
        assert compute_f1(*pair) == pytest.approx(f1)


def test_squad_s_measures_are_found_where_the_harness_looks():
    code = (
        "from krakenlm.eval.squad_metrics import provide_squad_metrics\n"
        "provide_squad_metrics()\n"
        "import transformers.data.metrics.squad_metrics as one\n"
        "from transformers.data.metrics import squad_metrics as other\n"
        "assert one is other and one.compute_exact('a cat', 'Cat.') == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
