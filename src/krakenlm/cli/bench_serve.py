"""``krakenlm bench serve``: what clients of a served model see."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.bench_outputs import command
from krakenlm.cli.options import positive_numbers
from krakenlm.errors import KrakenError

_Models = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Folders of models with tokenizers.")
]
_Devices = Annotated[int, typer.Option(help="Processes to share each model out to.")]
_Concurrency = Annotated[str, typer.Option(metavar="LIST", help="Requests under way at a time.")]
_InputLen = Annotated[int, typer.Option(help="Tokens of a prompt.")]
_OutputLen = Annotated[int, typer.Option(help="Tokens of an answer.")]
_NumPrompts = Annotated[
    int, typer.Option(help="Requests for each place under way: 8 make 32 for 4 at a time.")
]
_Rounds = Annotated[int, typer.Option(help="How often all models take their turn.")]
_Url = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="An OpenAI-compatible server that runs already, once for each DIR in their order; "
        "nothing is started then.",
        show_default=False,
    ),
]
_Peer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COMMAND",
        help="What runs a command on another node that takes its share of the devices, such "
        "as 'ssh node2'; once for each. There krakenlm is on the path and DIR in its place.",
        show_default=False,
    ),
]
_MasterAddr = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="With --peer: this node's address.", show_default=False),
]
_OutputJson = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write all numbers.", show_default=False),
]


def serve(
    models: _Models,
    devices: _Devices = 2,
    concurrency: _Concurrency = "1,4,16",
    input_len: _InputLen = 512,
    output_len: _OutputLen = 32,
    num_prompts: _NumPrompts = 8,
    rounds: _Rounds = 1,
    url: _Url = None,
    peer: _Peer = None,
    master_addr: _MasterAddr = "",
    output_json: _OutputJson = None,
) -> None:
    """Serve models in turn with vLLM and measure them with ``vllm bench serve``."""
    from krakenlm.console import console_for_tables
    from krakenlm.files import json_file
    from krakenlm.serving.benchmark import Nodes, measure
    from krakenlm.serving.benchmark_report import WIDTH, Load, table

    for name, value in (("rounds", rounds), ("input-len", input_len), ("num-prompts", num_prompts)):
        if value < 1:
            raise KrakenError(f"--{name} {value}: needs 1 or more")
    if output_len < 2:
        raise KrakenError(f"--output-len {output_len}: a time per token needs 2 or more")
    loads = [
        Load(
            concurrency=number,
            input_len=input_len,
            output_len=output_len,
            num_prompts=num_prompts * number,
        )
        for number in positive_numbers("--concurrency", concurrency)
    ]
    with json_file(output_json) as write:
        report = measure(
            models,
            devices,
            loads,
            rounds=rounds,
            urls=url or (),
            nodes=Nodes(tuple(peer or ()), master_addr),
            command=command(),
        )
        console_for_tables(WIDTH).print(table(report.results))
        write(report.to_json())
