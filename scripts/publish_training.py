"""Go the way of docs/train-your-own.md, from text to a SuperGLUE table, and keep what it found.

    python scripts/publish_training.py --text openwebtext.jsonl.gz --superglue DIR

Every step is the page's own command, run in an empty folder; its output and how long it took are
kept under docs/results/train-your-own, with the JSON and the picture that it wrote. ``--draw``
runs nothing and makes the page's tables from those files. Run nothing else meanwhile.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import markers
from krakenlm.environment import Environment, cores_here
from krakenlm.files import write_json

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "train-your-own.md"
RESULTS = ROOT / "docs" / "results" / "train-your-own"
KEPT = (
    *("losses.png", "losses.json", "kraken-perplexity.json", "standard-perplexity.json"),
    *("kraken.json", "standard.json"),
)


class Step(NamedTuple):
    """One command of the page: what it is for, and what follows ``krakenlm``."""

    name: str
    command: str


_KRAKEN, _STANDARD = "runs/small-cpu-kraken-2way", "runs/small-cpu-gpt2"
_EVAL = "--data-dir superglue --data-files val.jsonl,train_sample32.jsonl"
STEPS = (
    Step("tokens", "prepare --text TEXT --tokenizer train:4096 data/small"),
    Step("train Kraken", "train recipes/small-cpu-kraken-2way.toml"),
    Step("train the standard model", "train recipes/small-cpu-gpt2.toml"),
    Step("losses", f"compare {_STANDARD} {_KRAKEN} --plot losses.png --output-json losses.json"),
    Step(
        "perplexity of Kraken",
        f"perplexity {_KRAKEN}/model data/small --stride 128 --json kraken-perplexity.json",
    ),
    Step(
        "perplexity of the standard model",
        f"perplexity {_STANDARD}/model data/small --stride 128 --json standard-perplexity.json",
    ),
    Step("SuperGLUE, standard", f"eval {_STANDARD}/model {_EVAL} --json standard.json"),
    Step(
        "SuperGLUE, Kraken",
        f"eval {_KRAKEN}/model {_EVAL} --json kraken.json --compare standard.json",
    ),
)


def publish(text: Path, superglue: Path) -> None:
    """Run every step and keep what the page shows."""
    taken: list[dict[str, Any]] = []
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipes").symlink_to(ROOT / "recipes")
        (folder / "superglue").symlink_to(superglue.resolve())
        for number, step in enumerate(STEPS, 1):
            shown = step.command.replace("TEXT", text.name)
            command = step.command.replace("TEXT", str(text.resolve())).split()
            print(f"krakenlm {shown}", flush=True)
            start = time.monotonic()
            output = _run(command, folder)
            seconds = time.monotonic() - start
            (RESULTS / f"{number}-{command[0]}.txt").write_text(output, encoding="utf-8")
            taken.append({"step": step.name, "command": shown, "seconds": round(seconds, 1)})
        for kept in KEPT:
            shutil.copyfile(folder / kept, RESULTS / kept)
        manifest = json.loads((folder / "data" / "small" / "manifest.json").read_text("utf-8"))
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    summary = {
        "schema_version": 1,
        "tokens_prepared": tokens,
        "steps": taken,
        "environment": asdict(Environment.here(len(cores_here()))),
    }
    write_json(RESULTS / "steps.json", summary)


def _run(command: list[str], folder: Path) -> str:
    """What a command prints."""
    ended = subprocess.run(
        [sys.executable, "-m", "krakenlm", *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "120"},
    )
    return ended.stdout


def steps_table() -> str:
    """What each step took."""
    summary = json.loads((RESULTS / "steps.json").read_text("utf-8"))
    rows = [(f"`krakenlm {step['command']}`", _span(step["seconds"])) for step in summary["steps"]]
    environment = summary["environment"]
    machine = f"\n{environment['machine']}, {environment['cores']} cores.\n"
    return markers.markdown(("command", "took"), rows, numbers=True) + machine


def _span(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _printed(number: int, command: str) -> str:
    output = (RESULTS / f"{number}-{command}.txt").read_text(encoding="utf-8")
    lines = "\n".join(line.rstrip() for line in output.strip().splitlines())
    return f"```text\n{lines}\n```\n"


TABLES = {
    "steps": steps_table,
    "losses": lambda: _printed(4, "compare"),
    "superglue": lambda: _printed(len(STEPS), "eval"),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, help="what to learn from")
    parser.add_argument("--superglue", type=Path, help="folder of SuperGLUE's files")
    parser.add_argument("--draw", action="store_true", help="only make the tables anew")
    arguments = parser.parse_args()
    if not arguments.draw:
        if arguments.text is None or arguments.superglue is None:
            parser.error("give --text FILE and --superglue DIR, or --draw")
        publish(arguments.text, arguments.superglue)
    markers.rewrite([PAGE], TABLES)
