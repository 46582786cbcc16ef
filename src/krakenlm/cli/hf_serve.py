"""``krakenlm hf-serve``: an OpenAI-compatible server, by Transformers."""

from typing import Annotated

import typer

from krakenlm.cli.options import CheckOption, ServedModelArgument, check_if


def hf_serve(
    model: ServedModelArgument,
    flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FLAG]...", help="Flags of `transformers serve`, passed on as they are."
        ),
    ] = None,
    check: CheckOption = False,
) -> None:
    """Serve a model with Transformers on one device, behind an OpenAI-compatible API.

    It listens on localhost:8000 unless ``--host`` and ``--port`` say otherwise.
    """
    from krakenlm.serving.hf_serve import serve

    check_if(check, model)
    serve(model, flags or [])
