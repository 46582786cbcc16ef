"""``krakenlm serve``: an OpenAI-compatible server, by vLLM."""

from typing import Annotated

import typer

from krakenlm.cli.options import CheckOption, ServedModelArgument, SublayersOption, check_if


def serve(
    model: ServedModelArgument,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FLAG]...", help="Flags of `vllm serve`, passed on as they are."),
    ] = None,
    devices: Annotated[int, typer.Option(help="Processes to share the model out to.")] = 1,
    sublayers: SublayersOption = None,
    check: CheckOption = False,
) -> None:
    """Serve a model with vLLM behind an OpenAI-compatible API.

    It listens on 127.0.0.1:8000 unless ``--host`` and ``--port`` say otherwise.
    """
    from krakenlm.serving.serve import serve as serve_model

    check_if(check, model)
    raise typer.Exit(serve_model(model, devices, flags or [], sublayers))
