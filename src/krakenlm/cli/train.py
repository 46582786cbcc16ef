"""``krakenlm train``: a recipe to a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.options import OtherTokenizerOption


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="See recipes/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="In place of what the recipe says, such as training.lr=3e-4 or output=runs/mine; "
            "may be given several times.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what the run's folder holds and begin anew.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="Let the recipe have more steps than the run in its folder had. They keep the "
            "learning rate that its schedule ended at.",
        ),
    ] = False,
    other_tokenizer: OtherTokenizerOption = False,
) -> None:
    """Train a model by a recipe; an interrupted run goes on from its last checkpoint."""
    from krakenlm.console import results
    from krakenlm.data.manifest import Manifest
    from krakenlm.train.ranks import is_main_process
    from krakenlm.train.recipe import read_recipe
    from krakenlm.train.trainer import train as run_training

    resolved = read_recipe(recipe, lambda data: Manifest.load(data).vocab_size, overrides or ())
    run = run_training(resolved, restart=restart, extend=extend, other_tokenizer=other_tokenizer)
    if is_main_process():
        results.print(f"{run.model}", markup=False)
