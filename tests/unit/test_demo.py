"""The demo's own text, its folder, and the whole of it on a tiny text."""

import base64
import contextlib
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
from krakenlm.bench.results import LatencyReport, ModelLatency
from krakenlm.config import WIRINGS, ModelConfig, count_parameters, derive, model_config
from krakenlm.data.manifest import Manifest
from krakenlm.demo import own_text, report, run, steps, timing
from krakenlm.demo.outcome import Outcome, Over
from krakenlm.demo.own_text import python_installation_text
from krakenlm.demo.plan import DEVICES, RECOMMENDED, WIRES, Plan, Wire
from krakenlm.demo.run import run_demo
from krakenlm.demo.steps import claim_folder
from krakenlm.environment import Environment
from krakenlm.errors import KrakenError
from krakenlm.ranks.namespaces import Namespace, NoNamespacesError
from krakenlm.spread import Quantiles
from krakenlm.transport.links import Link

pytestmark = pytest.mark.usefixtures("own_signals")


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


def test_the_models_have_as_many_parameters_and_see_the_same_tokens(tmp_path):
    plan = Plan(out=tmp_path)
    assert plan.trained == ("standard", "kraken", RECOMMENDED)
    recipes = [plan.recipe(wiring, 4096) for wiring in plan.trained]
    standard, kraken, recommended = (recipe.model for recipe in recipes)
    assert kraken == derive(standard, DEVICES)
    assert recommended == derive(standard, DEVICES, rule="shared", message_parts=2)
    counts = [count_parameters(recipe.model) for recipe in recipes]
    assert counts == pytest.approx([counts[0]] * 3, rel=0.01)
    assert len({recipe.output for recipe in recipes}) == 3
    assert all(recipe.training == recipes[0].training for recipe in recipes)
    assert {recipe.data for recipe in recipes} == {plan.data}


def test_every_wiring_is_timed_at_a_size_that_makes_a_link_matter(tmp_path):
    plan = Plan(out=tmp_path)
    assert list(plan.timed)[:3] == list(plan.trained)
    assert set(plan.timed) == {*WIRINGS, RECOMMENDED}
    assert plan.timed["standard"] == model_config("124M")
    assert all(config.wiring == name.partition("/")[0] for name, config in plan.timed.items())
    assert [wire.title for wire in plan.wires] == ["one host", "1 Gbit/s", "100 Mbit/s"]
    for wire, gbps in zip(plan.wires[1:], (1, 0.1), strict=True):
        assert wire.emulated.gbps == gbps
        assert wire.rate == f"{1000 * gbps:.0f}mbit" or (wire.rate, gbps) == ("1gbit", 1)
    assert sum(wire.record for wire in plan.wires) == 1


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


def earlier_plan(text: Path, plan: Plan) -> tuple[Plan, list[Path]]:
    """As the demo of two models left its folder."""
    inputs = plan.out / "inputs.json"
    state = json.loads(inputs.read_text())
    old = {"out": None, "steps": 400, "vocab_size": 4096, "repetitions": 60, "prompt_tokens": 192}
    inputs.write_text(json.dumps({**state, "plan": old}))
    (plan.out / "first_token.json").write_text("{}")
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


@pytest.mark.parametrize(
    "change", [change_text, touch_text, another_text, another_plan, earlier_plan]
)
def test_other_text_or_settings_begin_anew(tmp_path, text, change, capfd):
    plan = Plan(out=tmp_path / "demo")
    claim_folder(plan, [text])
    made(plan)
    claim_folder(*change(text, plan))
    assert [path.name for path in plan.out.iterdir()] == ["inputs.json"]
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

    def timed_standard(self) -> ModelConfig:
        return self.standard(300)


def tiny_plan(out: Path, **changes: object) -> Plan:
    wires = tuple(replace(wire, rounds=2, warm_up=0) for wire in WIRES)
    plan = TinyPlan(out=out, steps=3, vocab_size=300, wires=wires, prompt_tokens=16)
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
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": ""},
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
    assert "\nChoose " in output  # all was said, of processes that it started too
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
    for loaded, name in zip(page.loads, ("first_token", "losses", "timeline"), strict=True):
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
def test_what_a_machine_says_of_itself_is_text_on_the_page(demo, tmp_path, monkeypatch):
    plan, text = demo
    kept = []
    monkeypatch.setattr(run, "write_report", lambda findings, out: kept.append(findings) or out)
    run_demo(plan, [text])
    (findings,) = kept
    environment = replace(findings.latencies[0].environment, machine="<script>1</script> {{ 6 }}")
    first = replace(findings.latencies[0], environment=environment)
    findings = replace(findings, latencies=[first, *findings.latencies[1:]])
    page = Page(report.write_report(findings, tmp_path).read_text(encoding="utf-8"))
    assert "<script>1</script> {{ 6 }}, " in page.said
    assert "script" not in page.tags


@pytest.mark.dist
def test_the_numbers_are_the_same_everywhere(said, demo):
    plan, _ = demo
    found = json.loads((plan.out / "results.json").read_text())
    page = Page((plan.out / "report.html").read_text(encoding="utf-8"))
    scores, standard = found["perplexity"], found["perplexity"]["standard"]["perplexity"]
    models = [row for row in page.rows if row[1] == f"{plan_parameters(found, row[0]):,}"]
    assert [row[0] for row in models] == list(plan.trained) == list(found["training"])
    for wiring, *shown in models:
        history = json.loads((plan.run(wiring) / "history.json").read_text())
        assert found["training"][wiring] == history
        score = scores[wiring]
        values = (score["loss"], score["perplexity"], score["bits_per_byte"])
        assert list(map(float, shown[1:])) == pytest.approx(values, abs=0.006)
    outcome = Outcome.load(plan.out)
    rows = {row[0]: row[1:] for row in page.rows if row[0] in plan.timed and row not in models}
    assert list(rows) == list(plan.timed)
    for wiring, (quality, *speeds) in rows.items():
        if wiring in scores:
            percent = 100 * (scores[wiring]["perplexity"] / standard - 1)
            relative = "" if wiring == "standard" else f", {percent:+.1f} %"
            assert quality == f"{scores[wiring]['perplexity']:.1f}{relative}"
        else:
            assert quality == ""
        for shown, wire in zip(speeds, plan.wires, strict=True):
            result = LatencyReport.load(plan.first_token(wire)).results[list(rows).index(wiring)]
            spread = result.speedup_spread
            assert shown.startswith(f"{result.ttft_ms.median:.2f} ms")
            ratio = f", {result.speedup:.2f}x ({spread.p10:.2f}–{spread.p90:.2f})"
            assert shown.endswith("ms" if wiring == "standard" else ratio)
    for words in (page.said, " ".join(said[2].split())):
        assert outcome.sentence() in words
    assert f"{found['data']['train_tokens']:,} tokens in all" in page.said
    assert found["greedy_tokens"] == {"tokens": 32, "agree": True}
    assert "Greedy tokens from one and from two processes are the same (32 compared)" in page.said
    assert "Greedy tokens from one and from two processes: the same (32 compared)\n" in said[2]
    assert found["data"]["sources"] == ["text.txt"]


def plan_parameters(found: dict, wiring: str) -> int:
    return found["training"].get(wiring, {"parameters": -1})["parameters"]


@pytest.mark.dist
def test_each_link_is_what_it_is_said_to_be(said):
    plan, _, output = said
    for wire in plan.wires:
        measured = LatencyReport.load(plan.first_token(wire))
        assert (measured.iterations, measured.devices, measured.dtype) in (
            (2, DEVICES, "bfloat16"),
            (2, DEVICES, "float32"),
        )
        if wire.rate is None:
            assert (measured.link, measured.transport) == ("real", "shared-memory")
        elif f"{wire.title}: a real link between two network namespaces\n" in output:
            assert (measured.link, measured.transport) == ("real", "sockets")
        else:
            assert f"{wire.title}: an emulated link, since" in output
            assert measured.link == f"emulated: {wire.emulated}"


@pytest.mark.dist
def test_the_timeline_shows_every_wiring(demo):
    plan, _ = demo
    timelines = json.loads((plan.out / "timelines.json").read_text())
    for wiring, config in plan.timed.items():
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
    monkeypatch.setattr(timing, "measure", never)
    monkeypatch.setattr("krakenlm.train.trainer._make_trainer", never)
    before = tiny.snapshot(plan.out)
    times = {path: path.stat().st_mtime_ns for path in (plan.out / "runs").rglob("*")}
    times |= {path: path.stat().st_mtime_ns for path in plan.data.rglob("*")}
    run_demo(plan, [text])
    assert tiny.snapshot(plan.out) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    captured = capfd.readouterr()
    notes = " ".join(captured.err.split())
    assert notes.count("trained already, nothing to do") == 3
    assert notes.count("measured already") == 3 and "tokens are there already" in notes
    assert Outcome.load(plan.out).sentence() in " ".join(captured.out.split())


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
    monkeypatch.setattr(run, "compare_tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(plan, [changed])
    assert {path.name for path in plan.out.iterdir()} == {"inputs.json", "data", "runs"}
    manifest = Manifest.load(plan.data)
    assert [source.bytes for source in manifest.sources] == [changed.stat().st_size]
    for wiring in plan.trained:
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


# --- a link that a machine does not have -------------------------------------------------------


def setup_over(wire: Wire, plan: Plan, monkeypatch) -> timing.Setup:
    """How a link would be measured."""
    asked = []

    def stop(contenders, setup, **_):
        asked.append(setup)
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        timing.time_links(replace(plan, wires=(wire,)))
    return asked[0]


def test_where_no_namespaces_can_be_made_the_link_is_emulated(tmp_path, monkeypatch, capfd):
    def forbidden(rate):
        raise NoNamespacesError("unshare failed: Operation not permitted")

    monkeypatch.setattr(timing, "linked_namespaces", forbidden)
    setup = setup_over(WIRES[2], tiny_plan(tmp_path), monkeypatch)
    assert (setup.link, setup.places) == (Link(gbps=0.1, latency_us=50), None)
    assert (
        "100 Mbit/s: an emulated link, since network namespaces cannot be made here: unshare "
        "failed: Operation not permitted\n" in capfd.readouterr().err
    )


def test_where_they_can_be_made_the_link_is_real_and_is_given_back(tmp_path, monkeypatch, capfd):
    places = tuple(Namespace(holder=1, interface=f"kr{i}", of_user=False) for i in range(2))
    did = []

    @contextlib.contextmanager
    def made(rate):
        did.append(rate)
        try:
            yield places
        finally:
            did.append("ended")

    monkeypatch.setattr(timing, "linked_namespaces", made)
    setup = setup_over(WIRES[1], tiny_plan(tmp_path), monkeypatch)
    assert (setup.link, setup.places, setup.record) == (None, places, True)
    assert did == ["1gbit", "ended"]
    assert "1 Gbit/s: a real link between two network namespaces\n" in capfd.readouterr().err


def test_one_host_has_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "linked_namespaces", never)
    setup = setup_over(WIRES[0], tiny_plan(tmp_path), monkeypatch)
    assert (setup.link, setup.places, setup.input_len, setup.output_len) == (None, None, 16, 1)


# --- what to choose ----------------------------------------------------------------------------

NAMES = ("standard", "kraken", "shared", "lagged")


def over(title: str, speedups: dict[str, tuple[float, float]], link: str = "real") -> Over:
    """A link with the median and the 10th percentile of some speedups; others are level."""

    def result(wiring: str) -> ModelLatency:
        middle, low = speedups.get(wiring, (1.0, 1.0 if wiring == "standard" else 0.97))
        ratios = Quantiles(median=middle, p10=low, p90=2 * middle - low)
        ttft = Quantiles(median=200 / middle, p10=1.0, p90=300.0)
        return ModelLatency(
            wiring=wiring, label=wiring, parameters=1, ttft_ms=ttft, no_comm_ttft_ms=ttft,
            speedup=middle, speedup_spread=ratios,
        )  # fmt: skip

    made_up = LatencyReport(
        title="made up", devices=2, input_len=1, dtype="float32", iterations=2, link=link,
        environment=Environment.here(cores=2), results=tuple(map(result, NAMES)),
    )  # fmt: skip
    return Over(title=title, where=f"at {title}", report=made_up)


def outcome(kraken: float, shared: float, *links: Over) -> Outcome:
    perplexities = {"standard": 100.0, "kraken": kraken, "shared": shared}
    return Outcome(perplexities=perplexities, links=links)


HOST = over("one host", {"kraken": (0.9, 0.88)})
FAST = over("1 Gbit/s", {"kraken": (1.3, 1.2), "shared": (1.5, 1.45), "lagged": (1.6, 1.5)})
SLOW = over("100 Mbit/s", {"kraken": (2.4, 2.3), "shared": (2.0, 1.9), "lagged": (2.1, 2.0)})


def test_what_is_ahead_at_no_price_is_to_be_chosen():
    assert outcome(110.0, 99.5, HOST, FAST, SLOW).sentence() == (
        "Choose shared: its first token comes 1.50x as fast at 1 Gbit/s and 2.00x as fast at 100 "
        "Mbit/s, with a perplexity 0.5 % below standard's; at one host it makes no difference "
        "(1.00x, 0.97–1.03)."
    )


def test_what_is_ahead_everywhere_is_said_in_one_list():
    here = over("one host", {"shared": (1.2, 1.1)})
    assert (
        "comes 1.20x as fast at one host, 1.50x as fast at 1 Gbit/s and 2.00x as fast at 100 "
        "Mbit/s, with a perplexity 0.5 % below standard's."
    ) in outcome(110.0, 99.5, here, FAST, SLOW).sentence()


def test_another_wiring_is_to_be_chosen_where_the_numbers_say_so():
    said = outcome(101.0, 99.5, HOST, FAST, SLOW).sentence()
    assert said.startswith("Choose kraken: its first token comes 1.30x as fast at 1 Gbit/s and")
    assert "with a perplexity 1.0 % above standard's; at one host it is slower (0.90x, 0" in said


def test_what_costs_more_perplexity_than_is_tolerated_is_named_with_its_price():
    assert outcome(110.0, 102.1, HOST, FAST, SLOW).sentence() == (
        "Choose standard unless a sooner first token is worth its price: kraken's perplexity is "
        "10.0 % above standard's and shared's perplexity is 2.1 % above standard's."
    )


def test_where_nothing_is_ahead_beyond_the_spread_that_is_said():
    noisy = over("1 Gbit/s", {"shared": (1.4, 0.9), "lagged": (1.5, 1.4)})
    said = outcome(110.0, 99.5, HOST, noisy).sentence()
    assert said.startswith("Choose standard: in this run no trained wiring was ahead of it by more")
    assert "quiet machine" in said and "shared" not in said


def test_an_emulated_link_says_so_everywhere():
    emulated = replace(SLOW, report=replace(SLOW.report, link="emulated: gbps=0.1,latency_us=50"))
    found = outcome(110.0, 99.5, HOST, emulated)
    assert found.headings == ("wiring", "perplexity", "one host", "100 Mbit/s (emulated)")
    assert "2.00x as fast at 100 Mbit/s (emulated), with" in found.sentence()


def test_the_table_has_blanks_where_nothing_was_trained():
    rows = dict(outcome(110.0, 99.5, HOST, FAST).rows())
    assert list(map(str, rows["standard"])) == ["100.0", "200.0 ms", "200.0 ms"]
    assert str(rows["kraken"][0]) == "110.0, +10.0 %"
    assert list(map(str, rows["lagged"])) == [
        "",
        "200.0 ms, 1.00x (0.97–1.03)",
        "125.0 ms, 1.60x (1.50–1.70)",
    ]
