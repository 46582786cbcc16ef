"""Run the demo and keep what it found, for docs/results/NAME/, README.md and docs/results.md.

    python scripts/publish_demo.py --name demo-openwebtext --text TEXT...
    python scripts/publish_demo.py --draw

Output, JSON and pictures are the demo's own, unedited. ``--draw`` runs nothing and shows on the
pages what is in docs/results/demo-openwebtext.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from krakenlm.files import whole_directory
from recording import RESULTS, ROOT, Record, measure_and_draw, option_parser

PAGES = (ROOT / "README.md",)
SHOWN = RESULTS / "demo-openwebtext"
KEPT = ("results.json", "losses.png", "first_token.png", "timeline.png")


def publish(options: argparse.Namespace) -> None:
    """Run the demo in an empty folder and copy what is kept."""
    texts = {f"TEXT{number}": text for number, text in enumerate(options.text)}
    command = " ".join(["demo", "--text", *texts] if texts else ["demo"])
    with (
        tempfile.TemporaryDirectory() as name,
        whole_directory(RESULTS / options.name, replace=True) as kept,
    ):
        output = Record(kept, Path(name)).krakenlm("demo", command, texts)
        (kept / "output.txt").write_text(output, encoding="utf-8")
        for file in KEPT:
            shutil.copyfile(Path(name) / "demo" / file, kept / file)


def demo_output() -> str:
    """The demo's output as a Markdown code block."""
    output = (SHOWN / "output.txt").read_text(encoding="utf-8")
    return f"```text\n{output.strip()}\n```\n"


TABLES = {"demo-output": demo_output}


if __name__ == "__main__":
    parser = option_parser(__doc__)
    parser.add_argument("--name", help="folder under docs/results/")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="as for the demo")
    measure_and_draw(parser, publish, pages=PAGES, tables=TABLES, needed=("name",))
