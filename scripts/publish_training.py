"""Go the way of docs/train-your-own.md, from text to a SuperGLUE table, and keep what it found.

    python scripts/publish_training.py --text openwebtext.jsonl.gz --superglue DIR

Every step is the page's own command, run in an empty folder; its output and how long it took are
kept under docs/results/train-your-own, with the JSON and the picture that it wrote. ``--draw``
runs nothing and makes the page's tables from those files. Run nothing else meanwhile.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import markers
import recording
from krakenlm.files import whole_directory

PAGE = recording.DOCS / "train-your-own.md"
RESULTS = recording.RESULTS / "train-your-own"
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


def publish(options: argparse.Namespace) -> None:
    """Run every step and keep what the page shows."""
    with (
        tempfile.TemporaryDirectory() as name,
        whole_directory(RESULTS, replace=True) as kept,
    ):
        folder = Path(name)
        (folder / "recipes").symlink_to(recording.ROOT / "recipes")
        (folder / "superglue").symlink_to(options.superglue.resolve())
        record = recording.Record(kept, folder)
        for number, step in enumerate(STEPS, 1):
            output = record.krakenlm(
                step.name, step.command, {"TEXT": options.text}, {"COLUMNS": "120"}
            )
            file = f"{number}-{step.command.split()[0]}.txt"
            (kept / file).write_text(output, encoding="utf-8")
        for file in KEPT:
            shutil.copyfile(folder / file, kept / file)
        manifest = json.loads((folder / "data" / "small" / "manifest.json").read_text("utf-8"))
        splits = manifest["splits"].values()
        record.note(tokens_prepared=sum(split["tokens"] for split in splits))


def steps_table() -> str:
    """What each step took."""
    summary = json.loads((RESULTS / "steps.json").read_text("utf-8"))
    rows = [
        (f"`krakenlm {step['command'].removeprefix('krakenlm ')}`", _span(step["seconds"]))
        for step in summary["steps"]
    ]
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
    parser = recording.option_parser(__doc__)
    parser.add_argument("--text", type=Path, help="what to learn from")
    parser.add_argument("--superglue", type=Path, help="folder of SuperGLUE's files")
    needed = ("text", "superglue")
    recording.measure_and_draw(parser, publish, pages=[PAGE], tables=TABLES, needed=needed)
