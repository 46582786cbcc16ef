"""`make gpu`: steps within limits, and what is found is put down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu  # noqa: E402
import gpu_session  # noqa: E402
from gpu_session import Session, Step  # noqa: E402

QUIET = "import time, pathlib, sys\n"
PUTS_DOWN_WHAT_IT_HAS = """
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[1]).write_text("half")
    sys.exit(1)
"""
HOLDS_ON = (
    "import signal; signal.signal(2, signal.SIG_IGN); print('begun', flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "_GRACE", 0.3)

    def make(seconds=60.0):
        return Session(tmp_path / "out", tmp_path / "work", seconds, {"WORD": "given"})

    return make


def step(name, code, *arguments, limit=20.0, **more):
    return Step(name, [sys.executable, "-c", QUIET + code, *map(str, arguments)], limit, **more)


def noted(tmp_path):
    return json.loads((tmp_path / "out" / "steps.json").read_text())["steps"]


def test_a_step_s_output_and_files_are_put_down_and_it_is_not_run_again(session, tmp_path):
    made = tmp_path / "made.txt"
    code = "import os; print(os.environ['WORD']); open(sys.argv[1], 'a').write('x')"
    once = step("once", code, made, keep={"made.txt": made})
    session().run(once)
    assert noted(tmp_path)["once"]["outcome"] == "ended"
    (tmp_path / "out" / "made.txt").unlink()
    again = session()
    again.run(once)
    assert (tmp_path / "out" / "made.txt").read_text() == "x"
    assert (tmp_path / "out" / "log.txt").read_text() == "once\ngiven\n\n"
    assert again.seconds_of("once") == noted(tmp_path)["once"]["seconds"]


def test_a_step_that_fails_is_run_again_by_the_next_session(session, tmp_path):
    made = tmp_path / "made.txt"
    session().run(step("fails", "open(sys.argv[1], 'a').write('x'); sys.exit(3)", made))
    assert noted(tmp_path)["fails"]["outcome"] == "failed with 3"
    assert session().seconds_of("fails") == float("inf")
    session().run(step("fails", "open(sys.argv[1], 'a').write('x')", made))
    assert noted(tmp_path)["fails"]["outcome"] == "ended"
    assert made.read_text() == "xx"


def test_a_step_beyond_its_limit_puts_down_what_it_has(session, tmp_path):
    half = tmp_path / "half.txt"
    session().run(step("long", PUTS_DOWN_WHAT_IT_HAS, half, limit=1.0, keep={"half.txt": half}))
    assert noted(tmp_path)["long"]["outcome"] == "cut short"
    assert (tmp_path / "out" / "half.txt").read_text() == "half"


def test_the_session_s_end_is_a_step_s_end_too_and_one_that_holds_on_is_killed(session, tmp_path):
    session(1.5).run(step("holds", HOLDS_ON))
    entry = noted(tmp_path)["holds"]
    assert entry["outcome"] == "cut short"
    assert entry["seconds"] < 10


def test_a_step_is_not_begun_with_less_than_it_needs(session, tmp_path):
    made = tmp_path / "made.txt"
    session(5.0).run(step("late", "open(sys.argv[1], 'w')", made, least=30.0))
    assert noted(tmp_path)["late"]["outcome"].startswith("not begun, ")
    assert not made.exists()


def test_commands_are_noted_without_folders_of_this_machine(session, tmp_path):
    session().run(step("where", "pass", tmp_path / "made.txt"))
    assert str(tmp_path) not in (tmp_path / "out" / "steps.json").read_text()
    assert noted(tmp_path)["where"]["command"].endswith(" made.txt")


def test_unknown_steps_and_texts_are_refused(tmp_path):
    script = [sys.executable, ROOT / "scripts" / "gpu.py", "--out", tmp_path / "out"]
    for wrong, said in ((["tets"], "no step tets"), (["--text", tmp_path / "no"], "no such file")):
        ended = subprocess.run([*script, *wrong], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert said in ended.stderr
    assert not (tmp_path / "out").exists()


def test_lengths_are_trained_while_they_fit(session, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_parity", lambda work, sizes, steps, least: step(
        f"parity-{steps}", "time.sleep(0.4)", least=least
    ))  # fmt: skip
    sizes = gpu.REHEARSAL
    gpu._train(session(20.0), tmp_path / "work", sizes)
    outcomes = {name: entry["outcome"] for name, entry in noted(tmp_path).items()}
    first, second, last = (f"parity-{length}" for length in sizes.lengths)
    assert (outcomes[first], outcomes[second]) == ("ended", "ended")
    assert outcomes[last].startswith("not begun")
