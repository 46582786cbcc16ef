"""``krakenlm train``: a recipe to a trained model."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="See recipes/.")],
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what the run's folder holds and begin anew.")
    ] = False,
) -> None:
    """Train a model by a recipe; an interrupted run goes on from its last checkpoint."""
    from krakenlm.console import results
    from krakenlm.data.manifest import Manifest
    from krakenlm.train.recipe import read_recipe
    from krakenlm.train.trainer import train as run_training

    resolved = read_recipe(recipe, lambda data: Manifest.load(data).vocab_size)
    run = run_training(resolved, restart=restart)
    results.print(f"{run.model}", markup=False)
