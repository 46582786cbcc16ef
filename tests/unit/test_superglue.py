"""SuperGLUE through lm-evaluation-harness, on a few invented examples of each task."""

import json
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch

import superglue_files
import tiny
from krakenlm.data import hub
from krakenlm.data.tokenizer import load_tokenizer, train_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.eval import harness
from krakenlm.eval.harness_tasks import from_files
from krakenlm.eval.model import load_causal_lm
from krakenlm.eval.official import TASKS, chosen_tasks, read_examples
from krakenlm.eval.report import EvalReport

pytest.importorskip("lm_eval", reason="needs the extra `eval`")
pytestmark = pytest.mark.usefixtures("own_signals")

ROOT = Path(__file__).resolve().parents[2]


def save_model(folder: Path, text: Path, context: int) -> None:
    """A random Kraken and a tokenizer."""
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

    torch.manual_seed(1)
    config = tiny.model_config(max_position_embeddings=context, initializer_range=0.3)
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)
    train_tokenizer([text], tiny.VOCABULARY).save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``data/``, ``model/``, and ``short/``: a model with a context of few tokens."""
    folder = tmp_path_factory.mktemp("superglue")
    superglue_files.write(folder / "data")
    text = folder / "text.txt"
    text.write_text("\n".join(example["passage"] for example in superglue_files.BOOLQ))
    save_model(folder / "model", text, context=512)
    save_model(folder / "short", text, context=32)
    return folder


@pytest.fixture(scope="module")
def report(made):
    """All eight tasks."""
    return harness.evaluate(
        made / "model",
        chosen_tasks("superglue"),
        data_dir=made / "data",
        load=harness.with_transformers(made / "model", "cpu"),
        command=["krakenlm", "eval"],
    )


@pytest.fixture
def cli(capfd, made, tmp_path, monkeypatch):
    """Runs ``krakenlm eval`` in a folder that knows the model and the data."""
    for name in ("model", "short", "data"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: tiny.call(capfd, "eval", *arguments)


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Of a continuation, token by token."""
    before = len(tokenizer(context)["input_ids"])
    ids = tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return sum(
        float(logits[position - 1].log_softmax(-1)[ids[position]])
        for position in range(before, len(ids))
    )


def argmax(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


# --- scores ------------------------------------------------------------------------------------


def test_all_eight_tasks_have_a_score(report):
    assert [score.task for score in report.scores] == list(TASKS)
    assert report.absent == ()
    assert {score.task: score.examples for score in report.scores} == superglue_files.EXAMPLES
    for score in report.scores:
        assert 0 <= score.score <= 1
        assert score.standard_error is not None
        assert score.source == f"{score.task}/val.jsonl" and len(score.sha256) == 64
        assert score.truncated == 0
    assert set(report.score_of("CB").metrics) == {"acc", "f1"}
    assert set(report.score_of("ReCoRD").metrics) == {"f1", "em"}


def test_the_report_says_what_was_run_with_what(report, made):
    from importlib.metadata import version

    assert report.model == str(made / "model")
    assert report.parameters == sum(
        parameter.numel() for parameter in load_causal_lm(made / "model").parameters()
    )
    assert (report.dtype, report.context, report.limit) == ("float32", 512, 0)
    assert (report.lm_eval, report.datasets) == (version("lm_eval"), version("datasets"))
    assert report.environment.krakenlm == version("krakenlm")
    assert report.command == ("krakenlm", "eval")


def test_accuracy_in_boolq_equals_an_independent_count(report, made):
    model, tokenizer = load_causal_lm(made / "model"), load_tokenizer(made / "model")
    right = []
    for example in superglue_files.BOOLQ:
        context = f"{example['passage']}\nQuestion: {example['question']}?\nAnswer:"
        answers = [log_likelihood(model, tokenizer, context, f" {word}") for word in ("no", "yes")]
        right.append(argmax(answers) == int(example["label"]))
    accuracy = sum(right) / len(right)
    assert report.score_of("BoolQ").score == pytest.approx(accuracy)
    # An odd number of questions: labels the wrong way round would give another score.
    error = (accuracy * (1 - accuracy) / (len(right) - 1)) ** 0.5
    assert report.score_of("BoolQ").standard_error == pytest.approx(error)


def test_both_measures_of_record_equal_an_independent_count(report, made):
    model, tokenizer = load_causal_lm(made / "model"), load_tokenizer(made / "model")
    exact, overlap = [], []
    for example in superglue_files.RECORD:
        passage = example["passage"]
        text, *highlights = passage["text"].split("\n@highlight\n")
        context = f"{text}\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)
        names = sorted(
            passage["text"][entity["start"] : entity["end"] + 1] for entity in passage["entities"]
        )
        for query in example["qas"]:
            ends = [f"\n   - {query['query'].replace('@placeholder', name)}" for name in names]
            start = context.rstrip()  # blanks belong to what follows them
            chosen = names[argmax([log_likelihood(model, tokenizer, start, e) for e in ends])]
            (answer,) = {answer["text"] for answer in query["answers"]}
            exact.append(chosen == answer)
            said, wanted = chosen.split(), answer.split()
            common = len(set(said) & set(wanted))
            overlap.append(2 * common / (len(said) + len(wanted)))
    assert 0 < sum(exact) < sum(overlap) < len(exact)  # else the measures could be mixed up
    found = report.score_of("ReCoRD").metrics
    assert found["em"] == pytest.approx(sum(exact) / len(exact))
    assert found["f1"] == pytest.approx(sum(overlap) / len(overlap))


def test_requests_longer_than_the_context_are_counted(made, cli):
    outcome = cli("short", "--tasks", "COPA,BoolQ", "--data-dir", "data", "--json", "short.json")
    assert outcome.code == 0, outcome.err
    found = EvalReport.load(Path("short.json"))
    tokenizer = load_tokenizer(made / "short")
    long = 0
    for row in read_examples(made / "data/BoolQ/val.jsonl", TASKS["BoolQ"]).rows:
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        long += sum(len(tokenizer(f"{context} {word}")["input_ids"]) > 33 for word in ("no", "yes"))
    assert 0 < long == found.score_of("BoolQ").truncated
    assert f"BoolQ: {long} requests were longer than the context of 32 tokens" in outcome.out


def test_an_answer_longer_than_the_context_is_refused(cli):
    outcome = cli("short", "--tasks", "MultiRC", "--data-dir", "data")
    assert outcome.code == 2
    assert "does not fit the context of 32" in outcome.complaints[0]


# --- the command -------------------------------------------------------------------------------


def test_the_command_shows_a_row_a_model_and_writes_json(cli):
    first = cli("model", "--tasks", "COPA,RTE", "--data-dir", "data", "--json", "base.json")
    assert first.code == 0, first.err
    report = EvalReport.load(Path("base.json"))
    assert [score.task for score in report.scores] == ["COPA", "RTE"]
    assert [score.source for score in report.scores] == ["COPA/val.jsonl", "RTE/val.jsonl"]
    for score in report.scores:
        assert f"{100 * score.score:.1f} ± {100 * score.standard_error:.1f}" in first.out
    mean = sum(score.score for score in report.scores) / 2
    assert f"{100 * mean:.1f} ± " in first.out
    again = cli("model", "--tasks", "COPA", "--data-dir", "data", "--limit", 2,
                "--compare", "base.json")  # fmt: skip
    rows = [line for line in again.out.splitlines() if line.startswith("│ model")]
    assert len(rows) == 2 and "absent" in rows[1]
    assert "mean of 1" in again.out
    assert "not comparable: the models were evaluated with different limits: 0, 2" in again.out
    assert "at most 2 examples of each task" in again.out
    shown = cli("base.json", "--compare", "base.json")
    assert len([line for line in shown.out.splitlines() if line.startswith("│ model")]) == 2
    assert "not comparable" not in shown.out


def test_a_task_without_a_file_is_named(cli, made, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(made / "data" / "CB", partial / "CB")
    (partial / "CB/val.jsonl").rename(partial / "CB/sample.jsonl")
    shutil.copytree(made / "data" / "COPA", partial / "COPA")
    outcome = cli("model", "--tasks", "CB,COPA,WSC", "--data-dir", "partial", "--json", "out.json",
                  "--data-files", "val.jsonl,sample.jsonl")  # fmt: skip
    assert outcome.code == 0, outcome.err
    reason = "partial/WSC holds no val.jsonl or sample.jsonl"
    assert f"WSC is absent: {reason}" in outcome.err
    assert f"model: WSC is absent: {reason}" in outcome.out
    report = EvalReport.load(Path("out.json"))
    assert [(absence.task, absence.reason) for absence in report.absent] == [("WSC", reason)]
    assert report.score_of("CB").source == "CB/sample.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "--data-dir", "gone"], "--data-dir gone does not exist"),
        (["model", "--data-dir", "data/CB"], "--data-dir data/CB has no file of BoolQ, CB"),
        (["model", "--data-dir", "data", "--data-files", "test.jsonl"], "needs a test.jsonl"),
        (["model", "--data-dir", "data", "--tasks", "glue"], "there is no task 'glue'"),
        (["model", "--data-dir", "data", "--limit", 1], "a limit of 1 cannot work"),
        (["model", "--data-dir", "data", "--batch-size", 0], "batch size 0 cannot work"),
        (["gone", "--data-dir", "data"], "model gone does not exist"),
        (["data", "--data-dir", "data"], "data has no config.json"),
        (["model/config.json"], "model/config.json is no evaluation"),
        (["model/model.safetensors"], "cannot read model/model.safetensors"),
        (["model", "--data-dir", "data", "--compare", "gone.json"], "cannot read gone.json"),
    ],
)
def test_bad_requests_are_one_line(cli, tmp_path, arguments, message):
    before = tiny.snapshot(tmp_path)
    outcome = cli(*arguments, *([] if arguments[0].count("/") else ["--json", "out.json"]))
    assert outcome.code == 2
    assert len(outcome.complaints) == 1 and message in outcome.complaints[0]
    assert outcome.out == ""
    assert tiny.snapshot(tmp_path) == before


def test_without_the_harness_one_line_says_how_to_install_it(cli, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    outcome = cli("model", "--data-dir", "data")
    assert outcome.code == 2
    assert "pip install 'krakenlm[eval]'" in outcome.complaints[0]


def test_without_the_hub_one_line_names_the_alternative(cli, monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    arguments = ("model", "--tasks", "WiC,COPA")
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    unreachable = cli(*arguments)
    assert unreachable.code == 2
    assert "the Hugging Face Hub cannot be reached" in unreachable.complaints[0]
    assert "--data-dir DIR" in unreachable.complaints[0]
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert "COPA cannot be loaded from the Hugging Face Hub" in outcome.complaints[0]
    assert "--data-dir DIR" in outcome.complaints[0]


def test_what_the_hub_gives_is_asked_in_the_same_way(made, report, monkeypatch):
    import datasets

    wanted = []

    def load(path, name, **kwargs):
        wanted.append((path, name))
        rows = read_examples(made / "data/WiC/val.jsonl", TASKS["WiC"]).rows
        return {split: datasets.Dataset.from_list(rows) for split in ("train", "validation")}

    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = harness.evaluate(made / "model", chosen_tasks("WiC"))
    (path, name), score = wanted[0], found.score_of("WiC")
    assert path.endswith("super_glue") and name == "wic"
    assert score.source == f"{path}, wic, validation" and score.sha256 == ""
    assert score.metrics == report.score_of("WiC").metrics


# --- the harness by itself ---------------------------------------------------------------------


def test_the_harness_s_own_model_names_load_our_models(made, tmp_path):
    from lm_eval.api.registry import get_model
    from lm_eval.evaluator import evaluate

    import krakenlm.eval.harness_model  # noqa: F401  registers the name

    (asked,) = from_files([(TASKS["BoolQ"], made / "data/BoolQ/val.jsonl")], tmp_path)
    answers = {}
    for name in ("krakenlm", "hf"):
        lm = get_model(name).create_from_arg_string(
            f"pretrained={made / 'model'}", {"batch_size": 2, "device": "cpu"}
        )
        found = evaluate(lm=lm, task_dict=asked.loaded, log_samples=True)
        answers[name] = [sample["resps"] for sample in found["samples"]["boolq"]]
    assert len(answers["hf"]) == 5
    assert str(answers["krakenlm"]) == str(answers["hf"])


def test_the_entry_point_for_the_harness_leads_to_the_model():
    from lm_eval.models.huggingface import HFLM

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["entry-points"]["lm_eval.models"]["krakenlm"].split(":")
    assert issubclass(getattr(import_module(module), name), HFLM)


def test_the_harness_s_command_is_run_with_our_models_known(monkeypatch, capsys):
    import lm_eval.__main__
    from lm_eval.api.registry import get_model

    from krakenlm.eval import lm_eval as wrapper

    seen = []
    look = lambda: seen.append(get_model("krakenlm"))  # noqa: E731
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", look)
    wrapper.main()
    assert [model.__name__ for model in seen] == ["KrakenLM"]

    def refuse():
        seen[0](pretrained="gone", device="cpu")

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", refuse)
    with pytest.raises(SystemExit) as leave:
        wrapper.main()
    assert leave.value.code == 2
    assert capsys.readouterr().err.startswith("krakenlm: model gone does not exist")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "float33"}, KrakenError, "dtype=float33 is no number format"),
        ({"device": "tpu"}, KrakenError, "device 'tpu' cannot be used here"),
        ({"peft": "adapter"}, TypeError, "peft"),
    ],
)
def test_model_arguments_that_cannot_work_are_refused(made, arguments, error, message):
    from krakenlm.eval.harness_model import KrakenLM

    with pytest.raises(error, match=message):
        KrakenLM(str(made / "model"), **{"device": "cpu", **arguments})


def test_the_number_format_can_be_chosen(made):
    from krakenlm.eval.harness_model import KrakenLM

    lm = KrakenLM(str(made / "model"), device="cpu", dtype="bfloat16", max_length=32)
    assert (lm.model.dtype, lm.max_length) == (torch.bfloat16, 32)


def test_json_of_a_run_is_read_strictly(report, tmp_path):
    values = json.loads(json.dumps(report.to_json()))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(values))
    assert EvalReport.load(path) == report
