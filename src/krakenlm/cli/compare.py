"""``krakenlm compare``: training runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from krakenlm.train.comparison import Comparison


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Folders of runs; ratios are to the first."),
    ],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the loss curves.")
    ] = None,
    output_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the numbers as JSON.")
    ] = None,
) -> None:
    """Compare the losses of runs that learned from the same tokens."""
    from krakenlm.console import notes
    from krakenlm.files import write_json
    from krakenlm.train.comparison import compare_runs, load_runs

    comparison = compare_runs(load_runs(folders))
    _show(comparison)
    if output_json is not None:
        write_json(output_json, comparison.to_dict())
        notes.print(f"wrote {output_json}", markup=False)
    if plot is not None:
        from krakenlm.bench.figures import draw_losses

        curves = {run.name: run.history.to_dict() for run in comparison.runs}
        draw_losses(curves, plot)
        notes.print(f"wrote {plot}", markup=False)


def _show(comparison: "Comparison") -> None:
    from rich.table import Table

    from krakenlm.console import results

    curves = Table(title="validation loss, nats per token", title_justify="left")
    curves.add_column("tokens", justify="right")
    for run in comparison.runs:
        curves.add_column(run.name, justify="right", overflow="fold")
    for tokens, losses in comparison.curves:
        curves.add_row(f"{tokens:,}", *(f"{loss:.4f}" for loss in losses))
    results.print(curves)
    finals = Table(title=f"after {comparison.tokens:,} tokens", title_justify="left")
    finals.add_column("run", overflow="fold")
    headings = ("parameters", "validation loss", "perplexity", "ratio of perplexities")
    for heading in headings:
        finals.add_column(heading, justify="right")
    for final in comparison.finals:
        finals.add_row(
            final.run,
            f"{final.parameters:,}",
            f"{final.validation_loss:.4f}",
            f"{final.perplexity:.2f}",
            f"{final.perplexity_ratio:.4f}",
        )
    results.print(finals)
    for final in comparison.finals:
        if final.perplexity_by_sublayers:
            of_each = ", ".join(f"{p:.2f} at {n}" for n, p in final.perplexity_by_sublayers.items())
            results.print(
                f"{final.run} drew its N; perplexity by N: {of_each} (above: its model's own N)",
                markup=False,
            )
    for run in comparison.extended:
        results.print(
            f"{run.name} was extended from {run.scheduled_steps:,} to {run.steps:,} steps, the "
            "added ones at the learning rate that it ended with",
            markup=False,
        )
