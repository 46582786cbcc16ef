"""``krakenlm demo``: the main job, on real text, in a few minutes."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE...",
            help="Text to learn from (.txt, .jsonl, .gz); by default the documentation and source "
            "of this machine's Python installation.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("demo"),
    steps: Annotated[int, typer.Option(help="Training steps of each model.", min=1)] = 250,
) -> None:
    """Train three models, time all wirings over three links, and say what to choose."""
    from krakenlm.console import results
    from krakenlm.demo.plan import Plan
    from krakenlm.demo.run import run_demo

    page = run_demo(Plan(out=out, steps=steps), text or [])
    results.print(f"\nreport: {page}", markup=False)
