"""The scripts that measure: commands are run, timed and kept, and pages show what was kept."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import tiny

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import latency_page  # noqa: E402
import publish_demo  # noqa: E402
import publish_serving  # noqa: E402
import publish_training  # noqa: E402
import recording  # noqa: E402
import run_bench  # noqa: E402
from krakenlm.environment import Environment  # noqa: E402

SPEAKING = "import sys, os; print('out', os.environ.get('WORD')); print('err', file=sys.stderr); "


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def steps(results: Path) -> dict:
    return json.loads((results / "steps.json").read_text(encoding="utf-8"))


# --- commands ----------------------------------------------------------------------------------


def test_a_command_s_output_exit_code_and_time_are_returned(tmp_path, capfd):
    code = f"{SPEAKING} import time; time.sleep(0.05); open('made', 'w'); sys.exit(3)"
    ended = recording.run(python(code), folder=tmp_path, environment={"WORD": "given"})
    assert (ended.code, ended.output) == (3, "out given\n")
    assert 0.05 <= ended.seconds < 30
    assert (tmp_path / "made").is_file()
    assert capfd.readouterr().err == "err\n"


def test_a_log_gets_everything_and_nothing_is_shown(tmp_path, capfd):
    ended = recording.run(python(SPEAKING), log=tmp_path / "log")
    assert (ended.code, ended.output) == (0, "")
    assert sorted((tmp_path / "log").read_text().split()) == ["None", "err", "out"]
    assert capfd.readouterr() == ("", "")


def test_a_record_keeps_each_command_how_long_it_took_and_where(tmp_path, capfd):
    record = recording.Record(tmp_path / "results", tmp_path, vllm={"vllm": "1"})
    assert record.run("first", python(SPEAKING), "krakenlm first") == "out None\n"
    assert [step["step"] for step in steps(record.results)["steps"]] == ["first"]
    record.run("second", python("import time; time.sleep(0.2)"), "krakenlm second")
    record.note(tokens_prepared=7)
    kept = steps(record.results)
    assert [step["command"] for step in kept["steps"]] == ["krakenlm first", "krakenlm second"]
    assert 0.2 <= kept["steps"][1]["seconds"] < 30
    assert (kept["schema_version"], kept["vllm"], kept["tokens_prepared"]) == (1, {"vllm": "1"}, 7)
    assert kept["environment"]["machine"] == Environment.here(cores=1).machine
    assert "first: krakenlm first\nout None\n" in capfd.readouterr().out


def test_a_command_that_fails_ends_the_script_and_is_not_kept(tmp_path, capfd):
    record = recording.Record(tmp_path / "results", tmp_path)
    record.run("first", python("pass"), "krakenlm first")
    with pytest.raises(SystemExit, match="second ended with 5, see above: krakenlm second"):
        record.run("second", python(f"{SPEAKING} sys.exit(5)"), "krakenlm second")
    assert [step["step"] for step in steps(record.results)["steps"]] == ["first"]
    assert capfd.readouterr().err == "err\n"


def test_files_of_this_machine_are_given_whole_and_shown_by_name(tmp_path, monkeypatch):
    echo = python("import sys; print(sys.argv[1:])")
    monkeypatch.setattr(recording, "KRAKENLM", tuple(echo))
    record = recording.Record(tmp_path / "results", tmp_path)
    text = tmp_path / "a text.txt"
    said = record.krakenlm("tokens", "prepare --text TEXT out", {"TEXT": text})
    assert said == f"{['prepare', '--text', str(text), 'out']}\n"
    assert steps(record.results)["steps"][0]["command"] == "krakenlm prepare --text a text.txt out"


# --- measuring and drawing ---------------------------------------------------------------------


def run_script(monkeypatch, tmp_path: Path, *arguments: str) -> list[str]:
    """Run a script that can measure and draw; returns what it did, and fills a page of one."""
    did: list[str] = []
    page = tmp_path / "page.md"
    page.write_text("<!-- table:did -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    parser = recording.option_parser("What it does.\n\nAnd how.")
    parser.add_argument("--text")
    recording.measure_and_draw(
        parser,
        lambda options: did.append(f"measure {options.text}"),
        pages=[page],
        tables={"did": lambda: f"{did}\n"},
        pictures=lambda options: did.append("pictures"),
        needed=["text"],
    )
    assert str(did) in page.read_text()
    return did


def test_a_script_measures_then_draws(monkeypatch, tmp_path):
    assert run_script(monkeypatch, tmp_path, "--text", "a") == ["measure a", "pictures"]


def test_draw_measures_nothing(monkeypatch, tmp_path):
    assert run_script(monkeypatch, tmp_path, "--draw") == ["pictures"]


def test_what_measuring_needs_is_asked_for(monkeypatch, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        run_script(monkeypatch, tmp_path)
    assert caught.value.code == 2
    assert "--text needed to measure; --draw measures nothing" in capfd.readouterr().err


# --- the scripts -------------------------------------------------------------------------------

FAKE_KRAKENLM = """
import sys
from pathlib import Path
words = sys.argv[1:]
with open({log!r}, "a") as log:
    print("krakenlm", *words[:2], file=log)
for option in ("--output-json", "--json", "--plot"):
    if option in words:
        Path(words[words.index(option) + 1]).write_bytes(Path({report!r}).read_bytes())
{more}
"""


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def fake_krakenlm(tmp_path, monkeypatch, log):
    """Stands in for the package's command: notes its first words and writes the files asked for."""

    def install(report: Path, more: str = "") -> None:
        program = tmp_path / "krakenlm.py"
        program.write_text(FAKE_KRAKENLM.format(log=str(log), report=str(report), more=more))
        monkeypatch.setattr(recording, "KRAKENLM", (sys.executable, str(program)))

    return install


FAKE_VLLM = """#!{python}
import json, os, sys
words = sys.argv[1:]
if words[0] == "-c":
    print(json.dumps({{"vllm": "0.99", "torch": "2", "transformers": "5"}}))
    sys.exit()
assert words[:4] == ["-m", "vllm.entrypoints.cli.main", "bench", "latency"]
value = dict(zip(words[4:], words[5:]))
assert json.load(open(value["--model"] + "/config.json"))["n_layer"] == 12
assert "|" in os.environ["VLLM_CPU_OMP_THREADS_BIND"] and os.environ["HF_HUB_OFFLINE"] == "1"
tokens = int(value["--output-len"])
with open({log!r}, "a") as log:
    print("vllm", tokens, file=log)
    log.flush()
run = open({log!r}).read().count(f"vllm {{tokens}}\\n")
seconds = 0.1 + 0.01 * run + 0.002 * (tokens - 1) * run
with open(value["--output-json"], "w") as written:
    json.dump({{"model_id": value["--model"], "percentiles": {{"50": seconds}}}}, written)
"""


@pytest.fixture
def vllm_python(tmp_path, log) -> Path:
    """Stands in for vLLM's python: 110 ms and 2 a token, 120 and 4 in run 2, ..."""
    program = tmp_path / "vllm-python"
    program.write_text(FAKE_VLLM.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    return program


@pytest.fixture
def latency_results(tmp_path, monkeypatch) -> Path:
    committed = latency_page.RESULTS
    monkeypatch.setattr(latency_page, "RESULTS", tmp_path / "results")
    return committed


def test_vllm_s_own_benchmark_and_ours_take_turns(latency_results, fake_krakenlm, vllm_python, log):
    fake_krakenlm(latency_results / "beside-vllm" / "run-1.json")
    kept = latency_page.RESULTS / "beside-vllm"
    kept.mkdir(parents=True)
    (kept / "vllm.json").write_text("{}")  # of another time
    run_bench.measure_beside_vllm(vllm_python, runs=3)
    turns = ["vllm 1", "vllm 16", "krakenlm bench latency"]
    assert log.read_text().splitlines() == turns * 3
    assert sorted(path.name for path in kept.iterdir()) == sorted(
        ["command.txt", "steps.json"]
        + [f"run-{run}.json" for run in (1, 2, 3)]
        + [f"vllm-{run}-tokens-{tokens}.json" for run in (1, 2, 3) for tokens in (1, 16)]
    )
    found = steps(kept)
    assert found["vllm"]["torch"] == "2" and len(found["steps"]) == 9
    assert found["steps"][1]["command"].startswith("vllm bench latency --model gpt2-124M ")
    engine, runs = latency_page.vllm_runs()
    assert engine == "vLLM 0.99"
    assert [run.ttft_ms for run in runs] == pytest.approx([110, 120, 130])
    assert [run.tpot_ms for run in runs] == pytest.approx([2, 4, 6])
    row = "| vLLM 0.99, GPT-2, TP=2, compiled | 120.0 (110.0–130.0) | 4.0 (2.0–6.0) |"
    assert row in latency_page.vllm_table()


def test_without_vllm_nothing_is_measured_or_replaced(latency_results, fake_krakenlm, tmp_path):
    fake_krakenlm(latency_results / "beside-vllm" / "run-1.json")
    kept = latency_page.RESULTS / "beside-vllm"
    kept.mkdir(parents=True)
    (kept / "run-1.json").write_text("{}")
    before = tiny.snapshot(kept)
    other = tmp_path / "other-python"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    for program in (tmp_path / "gone", other):
        with pytest.raises(SystemExit, match="has no vLLM: give"):
            run_bench.measure_beside_vllm(program, runs=1)
    assert tiny.snapshot(kept) == before


def test_the_first_run_of_a_scenario_replaces_those_of_another_time(
    latency_results, fake_krakenlm, tmp_path
):
    fake_krakenlm(latency_results / "allreduce-one-host" / "run-1.json")
    kept = latency_page.RESULTS / "allreduce-one-host"
    kept.mkdir(parents=True)
    for run in (1, 2, 3):
        (kept / f"run-{run}.json").write_text("of another time")
    record = recording.Record(kept, tmp_path)
    for run in (1, 2):
        run_bench.measure_scenario(record, run_bench.SCENARIOS["allreduce-one-host"], run)
    assert sorted(path.name for path in kept.glob("run-*")) == ["run-1.json", "run-2.json"]
    assert "of another time" not in {path.read_text() for path in kept.glob("run-*")}
    command = (latency_results / "allreduce-one-host" / "command.txt").read_text()
    assert (kept / "command.txt").read_text() == command
    assert steps(kept)["steps"][1]["command"] == command.strip()


def test_the_demo_s_findings_replace_the_earlier_ones_as_a_whole(
    tmp_path, monkeypatch, fake_krakenlm
):
    more = "Path('demo').mkdir(); "
    more += f"[Path('demo', file).write_text(file) for file in {publish_demo.KEPT}]"
    fake_krakenlm(tmp_path, more)
    kept = tmp_path / "results" / "demo"
    monkeypatch.setattr(publish_demo, "SHOWN", kept)
    kept.mkdir(parents=True)
    (kept / "stale.png").touch()
    texts = [Path("texts/a.txt"), Path("texts/b.txt")]
    publish_demo.publish(Namespace(text=texts))
    assert {path.name for path in kept.iterdir()} == {*publish_demo.KEPT, "steps.json"}
    assert (kept / "results.json").read_text() == "results.json"
    assert steps(kept)["steps"][0]["command"] == "krakenlm demo --text a.txt b.txt"


def test_training_keeps_what_its_page_shows(tmp_path, monkeypatch, fake_krakenlm, log):
    (tmp_path / "report").write_text("{}")
    more = """
print("said by", words[0])
if words[0] == "prepare":
    assert Path(words[2]).is_absolute() and Path("recipes").is_dir() and Path("superglue").is_dir()
    Path("data/small").mkdir(parents=True)
    splits = '{"splits": {"a": {"tokens": 5}, "b": {"tokens": 2}}}'
    Path("data/small/manifest.json").write_text(splits)
"""
    fake_krakenlm(tmp_path / "report", more)
    kept = tmp_path / "results"
    monkeypatch.setattr(publish_training, "RESULTS", kept)
    publish_training.publish(Namespace(text=Path("text.gz"), superglue=tmp_path))
    words = [step.command.split()[0] for step in publish_training.STEPS]
    assert [line.split()[1] for line in log.read_text().splitlines()] == words
    outputs = {f"{number}-{word}.txt": f"said by {word}\n" for number, word in enumerate(words, 1)}
    names = {path.name for path in kept.iterdir()}
    assert names == {*outputs, *publish_training.KEPT, "steps.json"}
    assert {name: (kept / name).read_text() for name in outputs} == outputs
    assert steps(kept)["tokens_prepared"] == 7
    assert "| `krakenlm prepare --text text.gz --tokenizer " in publish_training.steps_table()


def test_what_clients_see_is_kept_beside_how_it_was_measured(tmp_path, monkeypatch, fake_krakenlm):
    committed = publish_serving.report_of("cpu-2-ranks")
    fake_krakenlm(committed)
    kept = tmp_path / "results"
    monkeypatch.setattr(publish_serving, "RESULTS", kept)
    monkeypatch.setattr(publish_serving, "PICTURE", kept / "cpu-2-ranks.png")
    saved = []
    monkeypatch.setattr(publish_serving, "_save", lambda folder, *_: saved.append(folder.name))
    asked = Namespace(scenarios=["cpu-2-ranks"], tokenizer=tmp_path, rounds=2, num_prompts=3)
    publish_serving.measure(asked)
    models = publish_serving.SCENARIOS["cpu-2-ranks"].models
    assert saved == list(publish_serving.models()) and set(models) < set(saved)
    assert (kept / "cpu-2-ranks.json").read_bytes() == committed.read_bytes()
    (step,) = steps(kept / "cpu-2-ranks")["steps"]
    assert step["command"].startswith(f"krakenlm bench serve {' '.join(models)} --devices 2 ")
    publish_serving.draw()
    assert (kept / "cpu-2-ranks.png").read_bytes().startswith(b"\x89PNG")
