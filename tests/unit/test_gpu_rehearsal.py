"""`make gpu GPU_REHEARSAL=1`: its steps in order, what each leaves, and what is left of half of it.

The fast tests run the script's own commands on a program that does nothing but leave the files that
each of them would; the slow one runs what a user would.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tiny

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu  # noqa: E402
import gpu_session  # noqa: E402
import recording  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_signals")

STEPS = ["tests", "calibrate", "grid", "training", "parity-1", "parity-2"]
ALL = [*STEPS, "parity-1000"]  # which takes long, but for a program that does nothing
RESULTS = {
    *("log.txt", "steps.json", "tests.xml", "machine.toml", "paper-grid.json", "paper-grid.png"),
    *("training-speed.json", "parity.json"),
}
PROGRAM = """#!{python}
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
def behind(name):
    return pathlib.Path(words[words.index(name) + 1])
if "pytest" in words:
    name, found = "tests", [pathlib.Path(words[-1].partition("=")[2])]
elif "prepare" in words:
    name, found = "tokens", [pathlib.Path(words[-1]) / "manifest.json"]
elif "calibrate" in words:
    name, found = "calibrate", [behind("calibrate")]
elif "paper-grid" in words:
    folder = behind("paper-grid")
    name, found = "grid", [folder / "paper-grid.json", folder / "paper-grid.png"]
elif "training_speed.py" in words[0]:
    name, found = "training", [behind("--output-json")]
else:
    name, found = behind("--results").name, [behind("--results") / "parity.json"]
told = pathlib.Path({told!r})
with (told / "commands.txt").open("a") as commands:
    commands.write(json.dumps([name, *words]) + chr(10))
left = []
try:
    if (told / f"{{name}}-hangs").exists():
        (told / f"{{name}}-hung").touch()
        time.sleep(60)
    if (told / f"{{name}}-is-terminated").exists():
        while (told / "tokens-hangs").exists() and not (told / "tokens-hung").exists():
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    if (told / f"{{name}}-fails").exists():
        sys.exit(1)
except KeyboardInterrupt:
    left = ["a case"]
for path in found:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({{"of": name, "no_time_for": left}}))
print(name, "has ended")
sys.exit(1 if left else 0)
"""


class Rehearsal:
    """The script with a program in place of all of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        program, self.text = folder / "program", folder / "text.txt"
        program.write_text(PROGRAM.format(python=sys.executable, told=str(folder)))
        program.chmod(0o755)
        self.text.write_text("one\n")
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(recording, "KRAKENLM", (str(program), "-m", "krakenlm"))
        monkeypatch.setattr(gpu_session, "_GRACE", 5.0)

    def run(self, *options: str, minutes: float = 5.0) -> None:
        folder = self.folder
        words = [*options, "--out", folder / "out", "--work", folder / "work"]
        words += ["--minutes", minutes, "--text", self.text]
        self._monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
        gpu.main()

    def tell(self, what: str) -> None:
        (self.folder / what).touch()

    def forget(self, what: str) -> None:
        (self.folder / what).unlink()

    @property
    def commands(self) -> dict[str, list[str]]:
        """What was run last under each name, in order; and forgotten with that."""
        path = self.folder / "commands.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return {name: words for name, *words in map(json.loads, lines)}

    @property
    def outcomes(self) -> dict[str, str]:
        return outcomes_in(self.folder / "out")

    def result(self, name: str) -> dict:
        return json.loads((self.folder / "out" / name).read_text())


def outcomes_in(out: Path) -> dict[str, str]:
    steps = json.loads((out / "steps.json").read_text())["steps"]
    return {name: step["outcome"] for name, step in steps.items()}


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    return Rehearsal(tmp_path, monkeypatch)


def test_all_steps_run_in_order_and_leave_eight_files_in_one_folder(rehearsal):
    rehearsal.run("--rehearsal")
    commands = rehearsal.commands
    assert [name for name in commands if name != "tokens"] == ALL
    assert "tokens" in list(commands)[:2]  # made beside the tests
    assert rehearsal.outcomes == dict.fromkeys(["tokens", *ALL], "ended")
    assert {path.name for path in (rehearsal.folder / "out").iterdir()} == RESULTS
    assert rehearsal.result("paper-grid.json")["of"] == "grid"
    assert rehearsal.result("parity.json")["of"] == "parity-1000"  # the longest one
    log = (rehearsal.folder / "out" / "log.txt").read_text()
    assert all(f"{name} has ended" in log for name in commands)
    rehearsal.run("--rehearsal")
    assert rehearsal.commands == {}  # all done already


@pytest.mark.parametrize("real", [True, False])
def test_the_grid_is_planned_with_what_was_calibrated(rehearsal, real):
    options = ["calibrate", "grid", *([] if real else ["--rehearsal"])]
    rehearsal.tell("calibrate-fails")
    rehearsal.run(*options)
    without = rehearsal.commands["grid"]
    assert "--profile" not in without
    rehearsal.forget("calibrate-fails")
    (rehearsal.folder / "work" / "steps.json").unlink()
    rehearsal.run(*options)
    commands = rehearsal.commands
    profile = ["--profile", str(rehearsal.folder / "work" / "machine.toml")]
    (place,) = (i for i, word in enumerate(commands["grid"]) if word == "--profile")
    assert commands["grid"][place : place + 2] == profile
    assert commands["grid"][-2:] == ["--time-limit", "140"]
    assert [word for word in commands["grid"] if word not in profile] == without
    dtype = commands["calibrate"][commands["calibrate"].index("--dtype") + 1]
    assert dtype == ("float16" if real else "float32")  # of the grid, on that device


def test_a_step_that_is_cut_short_leaves_what_it_has_and_the_rest_goes_on(rehearsal, monkeypatch):
    real = gpu.Step

    def shorter(name, command, limit, *more, **others):
        return real(name, command, 1.0 if name == "grid" else limit, *more, **others)

    monkeypatch.setattr(gpu, "Step", shorter)
    rehearsal.tell("grid-hangs")
    rehearsal.run("--rehearsal")
    outcomes = rehearsal.outcomes
    assert outcomes["grid"] == "cut short"
    assert outcomes["training"] == outcomes["parity-1"] == "ended"
    assert rehearsal.result("paper-grid.json")["no_time_for"] == ["a case"]
    assert {path.name for path in (rehearsal.folder / "out").iterdir()} == RESULTS


def test_a_session_that_is_ended_puts_down_what_it_has_and_the_next_one_goes_on(rehearsal):
    rehearsal.tell("grid-is-terminated")
    with pytest.raises(SystemExit, match="interrupted: what was found is there"):
        rehearsal.run("--rehearsal")
    assert list(rehearsal.outcomes.values()) == ["ended", "ended", "ended", "interrupted"]
    assert rehearsal.result("paper-grid.json")["no_time_for"] == ["a case"]
    assert rehearsal.commands.keys() == {"tokens", "tests", "calibrate", "grid"}
    rehearsal.forget("grid-is-terminated")
    rehearsal.run("--rehearsal")
    assert list(rehearsal.commands) == ALL[2:]
    assert rehearsal.result("paper-grid.json")["no_time_for"] == []


def test_what_is_prepared_beside_the_tests_ends_with_them(rehearsal):
    rehearsal.tell("tokens-hangs")
    rehearsal.tell("tests-is-terminated")
    with pytest.raises(SystemExit, match="interrupted"):
        rehearsal.run("--rehearsal")
    tokens = rehearsal.folder / "work" / "parity" / "data" / "manifest.json"
    assert json.loads(tokens.read_text())["no_time_for"] == ["a case"]  # it was interrupted


def test_a_grid_that_has_cases_left_goes_on_in_the_next_session(rehearsal):
    rehearsal.run("grid")
    rehearsal.run("grid")
    assert list(rehearsal.commands) == ["grid"]
    rehearsal.run("grid")
    assert rehearsal.commands == {}
    found = rehearsal.folder / "work" / "grid" / "paper-grid.json"
    found.write_text('{"no_time_for": ["1.3B 4-way, 128 tokens, shared"]}')
    rehearsal.run("grid")
    assert list(rehearsal.commands) == ["grid"]


def test_a_session_without_time_begins_nothing(rehearsal):
    rehearsal.run("--rehearsal", minutes=0.05)
    assert rehearsal.commands == {}
    assert all(said.startswith("not begun") for said in rehearsal.outcomes.values())


def test_the_calibration_ends_within_its_step(tmp_path):
    options = gpu.REAL.calibrate
    seconds = float(options[options.index("--time") + 1])
    assert seconds + 20 <= gpu._calibrate(tmp_path, gpu.REAL).limit


@pytest.mark.slow
def test_the_real_rehearsal(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("".join(tiny.DOCUMENTS))
    script = [sys.executable, ROOT / "scripts" / "gpu.py", "--rehearsal"]
    script += ["--out", out, "--work", tmp_path / "work", "--text", text]
    ended = subprocess.run(script, capture_output=True, text=True, check=False)
    log = out / "log.txt"
    assert ended.returncode == 0, ended.stderr + (log.read_text() if log.exists() else "")
    outcomes = outcomes_in(out)
    assert {name: outcomes[name] for name in STEPS} == dict.fromkeys(STEPS, "ended"), (
        ended.stdout + log.read_text()
    )
    assert {path.name for path in out.iterdir()} == RESULTS
    assert sum(path.stat().st_size for path in out.iterdir()) < 16 * 2**20
    grid = json.loads((out / "paper-grid.json").read_text())
    assert grid["emulated"] and grid["geomean_cells"] == {"kraken": 4}
    machine = tomllib.loads((out / "machine.toml").read_text())
    assert grid["device_profile"] == machine["device"]["name"]
    assert grid["planner_error_percent"]["models"] == 8
    assert (out / "paper-grid.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "training-speed.json").read_text())
    assert json.loads((out / "parity.json").read_text())


def test_what_comes_before_the_models_fits_nine_minutes(tmp_path):
    """Also where each step takes all that it may; half a minute at least is left for models."""
    of_size = [step(tmp_path, gpu.REAL) for step in (gpu._calibrate, gpu._grid, gpu._training)]
    assert sum(step.limit for step in (gpu._tests(tmp_path), *of_size)) <= 9 * 60 - 30
