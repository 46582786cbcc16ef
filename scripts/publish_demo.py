"""Run the demo and keep what it found, for docs/results/NAME/, README.md and docs/results.md.

    python scripts/publish_demo.py --name demo-openwebtext --text TEXT...

Output, JSON and pictures are the demo's own, unedited; ``command.txt`` says what made them and how
long that took.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import markers

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md",)
RESULTS = ROOT / "docs" / "results"
KEPT = ("results.json", "losses.png", "first_token.png", "timeline.png")


def publish(name: str, texts: list[Path]) -> None:
    """Run the demo in an empty folder and copy what is kept."""
    target = RESULTS / name
    command = ["krakenlm", "demo"]
    if texts:
        command += ["--text", *(str(text.resolve()) for text in texts)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run = subprocess.run(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=folder,
        )
        minutes = (time.monotonic() - start) / 60
        target.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            shutil.copyfile(Path(folder) / "demo" / file, target / file)
    (target / "output.txt").write_text(run.stdout, encoding="utf-8")
    shown = " ".join(Path(word).name for word in command)  # folders say nothing to a reader
    (target / "command.txt").write_text(f"{shown}\n{minutes:.1f} minutes\n", encoding="utf-8")
    markers.rewrite(PAGES, BLOCKS)


def demo_output() -> str:
    """The demo's output as a Markdown code block."""
    output = (RESULTS / "demo-openwebtext" / "output.txt").read_text(encoding="utf-8")
    return f"```text\n{output.strip()}\n```\n"


BLOCKS = {"demo-output": demo_output}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", required=True, help="folder under docs/results/")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="as for the demo")
    arguments = parser.parse_args()
    publish(arguments.name, arguments.text)
