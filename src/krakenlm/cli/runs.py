"""``krakenlm runs``: what has been trained, and how far."""

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to look, at any depth.")
    ] = Path("runs"),
) -> None:
    """List training runs: state, steps, tokens, losses, parameters."""
    from rich.table import Table

    from krakenlm.console import results
    from krakenlm.train.comparison import find_runs

    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    headings = ("step", "tokens", "training\nloss", "validation\nloss", "parameters")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    for run in find_runs(folder):
        history = run.history
        table.add_row(
            run.name,
            run.state,
            f"{history.step:,}/{run.steps:,}",
            f"{history.step * history.tokens_per_step:,}",
            *(f"{found[-1].loss:.4f}" if found else "-" for found in history.losses),
            f"{history.parameters:,}",
        )
    results.print(table)
