"""The demo's own text, its folder, and the whole of it on a tiny text."""

import base64
import dataclasses
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tiny
from krakenlm.bench import figures
from krakenlm.config import ModelConfig, WiringName, count_parameters, derive
from krakenlm.data.manifest import Manifest
from krakenlm.demo import own_text, report, run, steps
from krakenlm.demo.own_text import python_installation_text
from krakenlm.demo.plan import DEVICES, Plan
from krakenlm.demo.run import run_demo
from krakenlm.demo.steps import claim_folder
from krakenlm.errors import KrakenError

pytestmark = pytest.mark.usefixtures("one_thread", "own_signals")


# --- the machine's own text --------------------------------------------------------------------


def test_own_text_is_the_same_every_time_and_readable():
    files = python_installation_text()
    assert files == python_installation_text()
    assert len(set(files)) == len(files) > 100
    for path in files:
        assert path.read_text(encoding="utf-8").strip()
    size = sum(path.stat().st_size for path in files)
    assert 2 << 20 < size < 16 << 20
    left_out = {"test", "tests", "site-packages", "__pycache__"}
    root = Path(own_text.sysconfig.get_path("stdlib"))
    assert not [p for p in files if left_out.intersection(p.relative_to(root).parts)]


def test_own_text_stops_when_it_has_enough(tmp_path, monkeypatch):
    for index in range(5):
        (tmp_path / f"{index}.py").write_text("x" * 100)
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("y" * 100)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text("z" * 100)
    (tmp_path / "a.bin").write_text("b" * 100)
    (tmp_path / "blank.py").write_text("\n")
    (tmp_path / "0latin.py").write_bytes(b"\xe9\xff")
    monkeypatch.setattr(own_text.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(own_text, "_BYTES", 250)
    names = [path.name for path in python_installation_text()]
    assert names == ["topics.py", "0.py", "1.py"]  # documentation first, then in order


def test_an_installation_without_source_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(own_text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(KrakenError, match="choose a text with --text FILE"):
        python_installation_text()


# --- the plan ----------------------------------------------------------------------------------


def test_the_twins_have_as_many_parameters_and_see_the_same_tokens(tmp_path):
    plan = Plan(out=tmp_path)
    models = plan.models(4096)
    assert set(models) == {"standard", "parallel", "ladder", "kraken"}
    assert all(config.wiring == wiring for wiring, config in models.items())
    standard = count_parameters(models["standard"])
    assert abs(count_parameters(models["kraken"]) / standard - 1) < 0.01
    assert models["kraken"].num_sublayers == DEVICES
    recipes = [plan.recipe(wiring, 4096) for wiring in steps.TRAINED]
    assert recipes[0].training == recipes[1].training
    assert recipes[0].data == recipes[1].data and recipes[0].output != recipes[1].output


# --- the folder --------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(100), encoding="utf-8")
    return path


def made(plan: Plan) -> Path:
    """Something that an earlier step left."""
    path = plan.out / "data"
    path.mkdir()
    return path


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_taken(tmp_path, text, exists):
    plan = Plan(out=tmp_path / "demo")
    if exists:
        plan.out.mkdir()
    claim_folder(plan, [text])
    assert [path.name for path in plan.out.iterdir()] == ["inputs.json"]


def test_the_same_text_and_plan_keep_what_is_there(tmp_path, text):
    plan = Plan(out=tmp_path / "demo")
    claim_folder(plan, [text])
    data = made(plan)
    claim_folder(plan, [text])
    assert data.is_dir()


def test_a_folder_that_was_moved_is_the_same_demo(tmp_path, text):
    claim_folder(Plan(out=tmp_path / "demo"), [text])
    made(Plan(out=tmp_path / "demo"))
    (tmp_path / "demo").rename(tmp_path / "other")
    claim_folder(Plan(out=tmp_path / "other"), [text])
    assert (tmp_path / "other" / "data").is_dir()


def change_text(text: Path, plan: Plan) -> tuple[Plan, list[Path]]:
    text.write_text("other text")
    return plan, [text]


def touch_text(text: Path, plan: Plan) -> tuple[Plan, list[Path]]:
    os.utime(text, (1, 1))
    return plan, [text]


def another_text(text: Path, plan: Plan) -> tuple[Plan, list[Path]]:
    other = text.with_name("other.txt")
    other.write_text("other")
    return plan, [text, other]


def another_plan(text: Path, plan: Plan) -> tuple[Plan, list[Path]]:
    return dataclasses.replace(plan, steps=7), [text]


@pytest.mark.parametrize("change", [change_text, touch_text, another_text, another_plan])
def test_other_text_or_settings_begin_anew(tmp_path, text, change, capfd):
    plan = Plan(out=tmp_path / "demo")
    claim_folder(plan, [text])
    data = made(plan)
    claim_folder(*change(text, plan))
    assert not data.exists()
    assert (plan.out / "inputs.json").is_file()
    assert "beginning anew" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["letter.txt", "inputs.json"])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, text, name):
    """An inputs.json of another program does not make the folder a demo's."""
    plan = Plan(out=tmp_path / "mine")
    plan.out.mkdir()
    (plan.out / name).write_text('{"mine": 1}')
    with pytest.raises(KrakenError, match="is not empty and holds no demo: choose another --out"):
        claim_folder(plan, [text])
    assert (plan.out / name).read_text() == '{"mine": 1}'
    assert len(list(plan.out.iterdir())) == 1


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, text):
    with pytest.raises(KrakenError, match="choose another --out"):
        claim_folder(Plan(out=text), [text])
    assert text.read_text(encoding="utf-8") == tiny.text(100)


def test_a_text_among_what_would_be_removed_is_refused(tmp_path, text):
    plan = Plan(out=tmp_path / "demo")
    claim_folder(plan, [text])
    inside = made(plan) / "inside.txt"
    inside.write_text("mine")
    before = tiny.snapshot(plan.out)
    with pytest.raises(KrakenError, match=r"inside\.txt lies in .*demo"):
        claim_folder(plan, [inside])
    assert tiny.snapshot(plan.out) == before


def test_what_the_demo_did_not_make_is_kept(tmp_path, text):
    plan = Plan(out=tmp_path / "demo")
    claim_folder(plan, [text])
    data = made(plan)
    (plan.out / "report.html").write_text("old")
    mine = plan.out / "mine.txt"
    mine.write_text("mine")
    claim_folder(plan, [mine])
    assert mine.read_text() == "mine"
    assert not data.exists() and not (plan.out / "report.html").exists()


def test_bad_texts_are_refused_before_the_folder_is_made_or_emptied(tmp_path, text):
    plan = Plan(out=tmp_path / "demo")
    (tmp_path / "empty.txt").touch()
    for bad in (tmp_path / "gone.txt", tmp_path / "empty.txt", tmp_path):
        with pytest.raises(KrakenError):
            claim_folder(plan, [text, bad])
        assert not plan.out.exists()
    claim_folder(plan, [text])
    data = made(plan)
    with pytest.raises(KrakenError):
        claim_folder(plan, [tmp_path / "gone.txt"])
    assert data.is_dir()


# --- all of it ---------------------------------------------------------------------------------


class TinyPlan(Plan):
    """The same steps over models of a few thousand parameters."""

    def standard(self, vocab_size: int) -> ModelConfig:
        return tiny.model_config(
            wiring="standard", num_sublayers=1, heads_per_sublayer=4, vocab_size=vocab_size,
            max_position_embeddings=80,
        )  # fmt: skip

    def models(self, vocab_size: int) -> dict[WiringName, ModelConfig]:
        models = super().models(vocab_size)
        assert models["kraken"] == derive(self.standard(vocab_size), DEVICES)
        return models


def tiny_plan(out: Path, **changes: object) -> Plan:
    plan = TinyPlan(out=out, steps=3, vocab_size=300, repetitions=3, prompt_tokens=16)
    return replace(plan, **changes)


def main() -> None:
    """Run the demo in a process of its own: ``python -c "import test_demo; ..." OUT TEXT``."""
    out, text = map(Path, sys.argv[1:])
    assert run_demo(tiny_plan(out), [text]) == out / "report.html"


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> tuple[Plan, Path, str]:
    """A finished demo and its text, not to be changed; and all that a user saw of it."""
    folder = tmp_path_factory.mktemp("demo")
    text = folder / "text.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    plan = tiny_plan(folder / "demo")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", "import test_demo; test_demo.main()", plan.out, text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As users have it, and not as our tests have it.
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout
    return plan, text, ended.stdout


@pytest.fixture(scope="module")
def demo(said) -> tuple[Plan, Path]:
    """A finished demo and its text; not to be changed."""
    return said[:2]


@pytest.mark.dist
def test_no_library_warns(said):
    _, _, output = said
    assert "Quality: validation text" in output  # all was said, of processes that it started too
    suspicious = [
        line
        for line in output.splitlines()
        if re.search(r"warn|deprecat|will be removed|\[transformers\]", line, re.IGNORECASE)
    ]
    assert suspicious == []


class Page(HTMLParser):
    """What a page loads, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.said = ""
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.said += data
        if self.in_cell:
            self.rows[-1][-1] += data


@pytest.mark.dist
def test_the_page_stands_alone(demo):
    plan, _ = demo
    source = (plan.out / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.loads) == 3
    for loaded, name in zip(page.loads, ("losses", "first_token", "timeline"), strict=True):
        kind, _, data = loaded.partition(",")
        assert kind == "data:image/png;base64"
        picture = base64.b64decode(data, validate=True)
        assert picture == (plan.out / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and picture.endswith(b"IEND\xaeB`\x82")
        width, height = struct.unpack(">II", picture[16:24])
        assert width > 500 and height > 300
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\(", source)


@pytest.mark.dist
def test_a_model_s_text_is_text_on_the_page(demo, tmp_path, monkeypatch):
    plan, text = demo
    kept = []
    monkeypatch.setattr(run, "write_report", lambda findings, out: kept.append(findings) or out)
    run_demo(plan, [text])
    (findings,) = kept
    answer = "<script>alert(1)</script></pre> & {{ 7 * 6 }} {% raw %} $seen \"'"
    environment = replace(findings.latency.environment, machine="<b>CPU</b>")
    findings = replace(
        findings,
        sample=replace(findings.sample, answer=answer),
        latency=replace(findings.latency, environment=environment),
    )
    page = Page(report.write_report(findings, tmp_path).read_text(encoding="utf-8"))
    assert findings.sample.prompt + answer in page.said
    assert "<b>CPU</b>, " in page.said
    assert "script" not in page.tags


@pytest.mark.dist
def test_the_numbers_are_the_same_everywhere(demo, capfd):
    plan, _ = demo
    found = json.loads((plan.out / "results.json").read_text())
    page = Page((plan.out / "report.html").read_text(encoding="utf-8"))
    rows = {row[0]: row for row in page.rows if len(row) == 5}
    for wiring in ("kraken", "standard"):
        score = found["perplexity"][wiring]
        history = json.loads((plan.run(wiring) / "history.json").read_text())
        assert found["training"][wiring] == history
        assert rows[wiring] == [
            wiring, f"{history['parameters']:,}", f"{score['loss']:.4f}",
            f"{score['perplexity']:.2f}", f"{score['bits_per_byte']:.4f}",
        ]  # fmt: skip
    latency = found["first_token"]
    assert latency == json.loads((plan.out / "first_token.json").read_text())
    assert [result["wiring"] for result in latency["results"]] == list(plan.models(300))
    rows = {row[0]: row for row in page.rows if len(row) == 6}
    assert latency["schema_version"] == 3 and latency["results"][0]["speedup"] == 1.0
    for result in latency["results"]:
        median, speedup = result["ttft_ms"]["median"], result["speedup"]
        shown = rows[result["wiring"]]
        assert shown[1] == f"{median:.2f}"
        assert shown[2] == f"{result['ttft_ms']['p10']:.2f} to {result['ttft_ms']['p90']:.2f}"
        assert shown[3] == f"{result['no_comm_ttft_ms']['median']:.2f}"
        assert shown[4] == f"{speedup:.2f}x"
        assert float(shown[5].rstrip("%")) == pytest.approx(100 * (1 / speedup - 1), abs=0.06)
    assert (latency["iterations"], latency["devices"]) == (3, 2)
    assert f"{found['data']['train_tokens']:,} tokens in all" in page.said
    sample = found["sample"]
    assert sample["greedy_tokens_agree"] is True and sample["greedy_tokens"] == 32
    assert "Greedy tokens from one and from two processes are the same (32 compared)" in page.said
    assert sample["prompt"] + sample["answer"] in page.said
    assert found["data"]["sources"] == ["text.txt"]


@pytest.mark.dist
def test_the_timeline_shows_every_wiring(demo):
    plan, _ = demo
    timelines = json.loads((plan.out / "timelines.json").read_text())
    for wiring, config in plan.models(300).items():
        events = [event for event in timelines[wiring] if event[1] == 0]
        sums = [event for event in events if event[0] == "AllReduce"]
        assert len(sums) == config.traits.allreduces(config.num_hidden_layers)
        assert all(event[3] <= event[4] for event in events)


def never(*arguments, **keywords):
    raise AssertionError("this was done already")


@pytest.mark.dist
def test_a_second_run_reuses_everything(demo, monkeypatch, capfd):
    plan, text = demo
    monkeypatch.setattr(steps, "prepare", never)
    monkeypatch.setattr(steps.latency, "measure", never)
    monkeypatch.setattr("krakenlm.train.trainer._make_trainer", never)
    before = tiny.snapshot(plan.out)
    times = {path: path.stat().st_mtime_ns for path in (plan.out / "runs").rglob("*")}
    times |= {path: path.stat().st_mtime_ns for path in plan.data.rglob("*")}
    run_demo(plan, [text])
    assert tiny.snapshot(plan.out) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    captured = capfd.readouterr()
    notes = " ".join(captured.err.split())
    assert notes.count("trained already, nothing to do") == 2
    assert "measured already" in notes and "tokens are there already" in notes
    # What is printed are the numbers of the file.
    found = json.loads((plan.out / "results.json").read_text())
    for result in found["first_token"]["results"]:
        assert f"{result['ttft_ms']['median']:.2f}" in captured.out
    for score in found["perplexity"].values():
        assert f"{score['perplexity']:.2f}" in captured.out


@pytest.mark.dist
def test_a_changed_text_begins_anew(demo, tmp_path, monkeypatch):
    """Of the other text's demo nothing is used again; here the new one ends after its scores."""
    finished, text = demo
    plan = replace(finished, out=tmp_path / "demo")
    shutil.copytree(finished.out, plan.out)
    changed = tmp_path / "text.txt"
    changed.write_text(text.read_text("utf-8").replace("Line", "Row"), encoding="utf-8")
    scores = []
    really = run.score_models

    def scored(*arguments):
        scores.append(really(*arguments))
        return scores[0]

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "score_models", scored)
    monkeypatch.setattr(run, "write_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(plan, [changed])
    assert {path.name for path in plan.out.iterdir()} == {"inputs.json", "data", "runs"}
    manifest = Manifest.load(plan.data)
    assert [source.bytes for source in manifest.sources] == [changed.stat().st_size]
    for wiring in steps.TRAINED:
        folders = [each.run(wiring) for each in (finished, plan)]
        before, after = (json.loads((each / "recipe.json").read_text()) for each in folders)
        assert after["data_sha256"]["train"] == manifest.splits.train.sha256
        assert before["data_sha256"] != after["data_sha256"]
        weights = [(each / "model" / "model.safetensors").read_bytes() for each in folders]
        assert weights[0] != weights[1]
        assert scores[0][wiring].tokens == manifest.splits.validation.tokens - 1


def test_without_a_text_the_installation_s_own_is_used(tmp_path, monkeypatch, capfd, text):
    class StopError(Exception):
        pass

    def stop(plan, texts):
        raise StopError(texts)

    monkeypatch.setattr(run, "python_installation_text", lambda: [text])
    monkeypatch.setattr(run, "make_tokens", stop)
    with pytest.raises(StopError) as caught:
        run_demo(tiny_plan(tmp_path / "demo"), [])
    assert caught.value.args == ([text],)
    assert "1 files of this machine's Python installation" in capfd.readouterr().err


def test_a_picture_that_cannot_be_drawn_leaves_no_half_of_it(tmp_path, monkeypatch):
    def half(figure, target, **_):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    class Findings:
        histories = {"kraken": {"tokens_per_step": 1, "training": [], "validation": []}}  # noqa: RUF012

    (tmp_path / "losses.png").write_bytes(b"whole")
    monkeypatch.setattr(report, "_as_json", lambda *_: {})
    monkeypatch.setattr(figures.Figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(Findings(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.png", "results.json"]
    assert (tmp_path / "losses.png").read_bytes() == b"whole"
