"""Keep what this version writes, for later versions to be tested with: tests/golden/VERSION.

Run before each release, on a machine without a GPU, where nothing else runs:

    python scripts/keep_version.py
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from krakenlm.environment import own_version

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
sys.path.insert(0, str(TESTS))

import superglue_files  # noqa: E402
import tiny  # noqa: E402

PROMPT = "Line 1: "
STEPS, SAVED = 8, 4


def folder(version: str) -> Path:
    """Where a version's files are kept."""
    return TESTS / "golden" / "versions" / version


def main() -> None:
    """Refuse a version that is kept already; else write its files."""
    kept = folder(own_version())
    if kept.exists():
        sys.exit(f"{kept} is there: a version's files never change; remove it to make it anew")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make(work)
        shutil.copytree(work, kept)


def make(work: Path) -> None:
    """Write tokens, a run with a checkpoint, reports, and what the model answers."""
    (work / "text.txt").write_text(tiny.text(300), encoding="utf-8")
    superglue_files.write(work / "superglue")
    say(work, "prepare", "data", "--text", "text.txt", "--tokenizer", "train:280")
    recipe = tiny.recipe_text(Path("data"), Path("run"), steps=STEPS, save_every=SAVED)
    (work / "recipe.toml").write_text(recipe, encoding="utf-8")
    say(work, "train", "recipe.toml")
    checkpoints = work / "run" / "checkpoints"
    shutil.rmtree(checkpoints / f"checkpoint-{STEPS}")
    # Trainer writes it and nothing of ours reads it; it has the machine's name in it.
    (checkpoints / f"checkpoint-{SAVED}" / "training_args.bin").unlink()
    say(work, "perplexity", "run/model", "text.txt", "--json", "perplexity.json")
    lengths = ("--input-len", 8, "--output-len", 2, "--num-iters", 2, "--devices", 2)
    say(work, "bench", "latency", "run/model", *lengths, "--output-json", "latency.json")
    files = ("--data-dir", "superglue", "--limit", 2, "--tasks", "boolq")
    say(work, "eval", "run/model", *files, "--json", "eval.json")
    answer = say(work, "generate", "run/model", "--prompt", PROMPT, "--max-new-tokens", 12)
    found = json.loads((work / "perplexity.json").read_text(encoding="utf-8"))
    expected = {"prompt": PROMPT, "answer": answer, "loss": found["loss"]}
    (work / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work / "superglue")


def say(work: Path, *arguments: object) -> str:
    """Run a command of krakenlm; what it printed."""
    command = [sys.executable, "-m", "krakenlm", *map(str, arguments)]
    return subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
