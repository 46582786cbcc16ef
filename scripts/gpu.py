"""Everything that waits for a GPU, in one command of at most nine minutes.

    python scripts/gpu.py [STEP...] --out FOLDER [--minutes 9] [--text TEXT...]
    python scripts/gpu.py [STEP...] --out FOLDER --rehearsal

In this order: the tests for GPUs; ``krakenlm calibrate``; ``krakenlm bench paper-grid``, as much of
it as its time allows, planned with what was calibrated; training steps of Kraken, of the same as a
loop, and of the wirings that share the standard model's weights; and with the time that is left,
models of 25M parameters trained at one length after another. Each step has a limit of its own, and
FOLDER has at most eight files, which say what was found up to where the time ended. The same
command goes on where it was cut short.

It needs PyTorch, Transformers, accelerate, Typer, matplotlib and pytest, and no network.
``--rehearsal`` runs the same steps with tiny sizes on a CPU. Without ``--text`` nothing is trained.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import parity_page
import recording
from gpu_session import Session, Step
from krakenlm.emulation import PICTURE, SUMMARY

STEPS = ("tests", "calibrate", "grid", "training", "parity")
_GRID_SECONDS = 140
_SCRIPTS = recording.ROOT / "scripts"


@dataclass(frozen=True)
class Sizes:
    """What tells the rehearsal from the real thing.

    Attributes:
        calibrate: options of ``krakenlm calibrate``.
        grid: of ``krakenlm bench paper-grid``.
        training: of ``scripts/training_speed.py``.
        parity: of ``scripts/parity.py``.
        changes: to the recipe of its models.
        vocabulary: that is trained for it.
        lengths: steps that each of its models is trained for, one length after the other.
    """

    calibrate: tuple[str, ...]
    grid: tuple[str, ...]
    training: tuple[str, ...]
    parity: tuple[str, ...]
    changes: tuple[str, ...]
    vocabulary: int
    lengths: tuple[int, ...]


REAL = Sizes(
    calibrate=("--dtype", "float16", "--time", "90"),  # the paper's type, which the grid has
    grid=(),
    training=("--device", "cuda", "--batch-size", "8", "--tokens", "1024", "--rounds", "9"),
    parity=("--models", "shared 4-way", "kraken 4-way published", "--processes", "3"),
    changes=("training.compile=false",),  # which would want a C compiler there
    vocabulary=8192,
    lengths=(500, 2000, 5000),
)
REHEARSAL = Sizes(
    calibrate=("--devices", "1", "--device", "cpu", "--dtype", "float32", "--time", "10"),
    grid=(
        *("--scale", "tiny", "--sizes", "1.3B", "--wirings", "kraken"),
        *("--device", "cpu", "--dtype", "float32"),
    ),
    training=("--layers", "1", "--tokens", "8", "--rounds", "1", "--dtype", "float32"),
    parity=("--models", "shared 4-way", "--processes", "1"),
    changes=(
        *("model.hidden_size=16", "model.heads_per_sublayer=4", "model.num_hidden_layers=2"),
        *("model.max_position_embeddings=16", "training.compile=false", "training.batch_size=1"),
        *("training.eval_batches=1", "training.precision=float32"),
    ),
    vocabulary=300,
    lengths=(1, 2, 1000),
)


def run(session: Session, options: argparse.Namespace, sizes: Sizes) -> None:
    """All steps that were asked for."""
    wanted = options.steps or STEPS
    work = options.work.resolve()
    tokens = work / "parity" / "data"
    preparing = None
    if "parity" in wanted and options.text:
        # Beside the tests, whose times nobody reads.
        preparing = session.begin(_tokens(options.text, tokens, sizes))
    try:
        if "tests" in wanted:
            session.run(_tests(work))
    except KeyboardInterrupt:
        if preparing is not None:
            preparing.end(0.0)
        raise
    session.end(preparing)
    for name, step in (("calibrate", _calibrate), ("grid", _grid), ("training", _training)):
        if name in wanted:
            session.run(step(work, sizes))
    if "parity" in wanted and (tokens / "manifest.json").is_file():
        _train(session, work, sizes)


def _tests(work: Path) -> Step:
    report = work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    return Step("tests", [*command, f"--junitxml={report}"], 130, keep={"tests.xml": report})


def _machine(work: Path) -> Path:
    return work / "machine.toml"


def _calibrate(work: Path, sizes: Sizes) -> Step:
    machine = _machine(work)
    command = [*recording.KRAKENLM, "calibrate", str(machine), *sizes.calibrate]
    return Step("calibrate", command, 110, keep={"machine.toml": machine})


def _grid(work: Path, sizes: Sizes) -> Step:
    """Goes on where cases are left; planned with a profile that the planner has without one."""
    folder, machine = work / "grid", _machine(work)
    profile = ["--profile", str(machine)] if machine.is_file() else []
    command = [*recording.KRAKENLM, "bench", "paper-grid", str(folder), *profile, *sizes.grid]
    left = False
    with suppress(FileNotFoundError):
        left = bool(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["no_time_for"])
    return Step(
        "grid",
        [*command, "--time-limit", str(_GRID_SECONDS)],
        _GRID_SECONDS + 25,  # it has to start and to draw as well
        keep={SUMMARY: folder / SUMMARY, PICTURE: folder / PICTURE},
        again=left,
    )


def _training(work: Path, sizes: Sizes) -> Step:
    speed = work / "training-speed.json"
    script = [sys.executable, str(_SCRIPTS / "training_speed.py"), "--measure-only"]
    command = [*script, *sizes.training, "--output-json", str(speed)]
    return Step("training", command, 90, keep={"training-speed.json": speed})


def _tokens(texts: Sequence[Path], tokens: Path, sizes: Sizes) -> Step:
    text = [word for each in texts for word in ("--text", str(each.resolve()))]
    tokenizer = ["--tokenizer", f"train:{sizes.vocabulary}"]
    return Step("tokens", [*recording.KRAKENLM, "prepare", *text, *tokenizer, str(tokens)], 180)


def _train(session: Session, work: Path, sizes: Sizes) -> None:
    """Lengths one after another, each if it will fit by the time that the one before it took."""
    before: Step | None = None
    for at, steps in enumerate(sizes.lengths):
        least = 1.0
        if before is not None:
            least = session.seconds_of(before.name) * steps / sizes.lengths[at - 1]
        _lend_tokens(work, _runs(work, steps))
        step = _parity(work, sizes, steps, least)
        session.run(step)
        before = step


def _runs(work: Path, steps: int) -> Path:
    """Of one length: in one folder a run of another length would be in the way."""
    return work / f"parity-{steps}" / "work"


def _lend_tokens(work: Path, runs: Path) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / "data").exists():
        (runs / "data").symlink_to((work / "parity" / "data").resolve())


def _parity(work: Path, sizes: Sizes, steps: int, least: float) -> Step:
    results = work / f"parity-{steps}"
    command = [sys.executable, str(_SCRIPTS / "parity.py"), "--measure-only"]
    command += ["--recipe", str(recording.ROOT / "recipes" / "parity-gpu.toml")]
    command += ["--tokenizer", f"train:{sizes.vocabulary}", "--work", str(_runs(work, steps))]
    command += ["--learning-rates", "1e-3", "--seeds", "0", "--results", str(results)]
    lengths = [f"training.steps={steps}", f"training.warmup_steps={steps // 20}"]
    command += [*sizes.parity, "--set", *sizes.changes, *lengths]
    found = {"parity.json": results / parity_page.SUMMARY}  # the longest one is what stays
    return Step(f"parity-{steps}", command, 400, least, found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; all by default")
    add("--out", type=Path, required=True, help="where results go: eight files at most")
    work = recording.ROOT / "runs" / "gpu"
    add("--work", type=Path, default=work, help="for all else; the same one goes on")
    add("--minutes", type=float, default=9.0, help="for everything together")
    add("--text", type=Path, nargs="+", default=[], help="what models learn from")
    add("--rehearsal", action="store_true", help="tiny sizes, on a CPU")
    return parser


def main() -> None:
    """Run the steps."""
    parser = _parser()
    options = parser.parse_args()
    if unknown := sorted(set(options.steps) - set(STEPS)):
        parser.error(f"no step {', '.join(unknown)}: choose from {', '.join(STEPS)}")
    for text in options.text:
        if not text.is_file():
            parser.error(f"--text {text}: there is no such file")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    path = [str(recording.ROOT / "src"), str(_SCRIPTS), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "HF_HUB_OFFLINE": "1"}
    session = Session(options.out, options.work, 60 * options.minutes, environment)
    try:
        run(session, options, REHEARSAL if options.rehearsal else REAL)
    except KeyboardInterrupt:
        sys.exit("interrupted: what was found is there, and the same command goes on")


if __name__ == "__main__":
    main()
