"""``krakenlm bench serve``: what clients of a served model see."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.errors import KrakenError


def serve(
    models: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of models with tokenizers.")
    ],
    devices: Annotated[int, typer.Option(help="Processes to share each model out to.")] = 2,
    concurrency: Annotated[
        str, typer.Option(metavar="LIST", help="Requests under way at a time.")
    ] = "1,4,16",
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 512,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.")] = 32,
    num_prompts: Annotated[
        int, typer.Option(help="Requests for each place under way: 8 make 32 for 4 at a time.")
    ] = 8,
    output_json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all numbers.", show_default=False),
    ] = None,
) -> None:
    """Serve models in turn with vLLM and measure them with ``vllm bench serve``."""
    from krakenlm.console import results
    from krakenlm.files import write_json
    from krakenlm.serving.benchmark import Load, measure, table

    loads = [
        Load(
            concurrency=number,
            input_len=input_len,
            output_len=output_len,
            num_prompts=num_prompts * number,
        )
        for number in _numbers(concurrency)
    ]
    served = measure(models, devices, loads, [])
    results.print(table(served))
    if output_json is not None:
        write_json(
            output_json, {"devices": devices, "results": [each.to_json() for each in served]}
        )


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise KrakenError(f"--concurrency {text}: needs numbers of 1 or more, such as 1,4,16")
    return numbers
