"""``krakenlm generate``: text from a model on one device or several."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    devices: Annotated[
        int | None,
        typer.Option(help="Processes to share the model out to; under torchrun, its own number."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to generate at most; by default 64 or what the context leaves."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy; above, tokens are drawn.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens that reach this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    dtype: Annotated[
        str,
        typer.Option(help="auto (float32 on CPUs, else bfloat16), float32, bfloat16, float16."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(help="Compute threads of each process; by default one for each of its cores."),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            help="Sub-layers (or KV heads) on each device, as in 3,1, or auto to measure and "
            "balance them; by default as even as possible."
        ),
    ] = None,
    tensor_parallel: Annotated[
        int, typer.Option(help="Devices that share each Kraken sub-layer.")
    ] = 1,
    prefill_chunks: Annotated[
        int,
        typer.Option(help="Parts of the prompt whose AllReduces hide behind one another."),
    ] = 1,
    transport: Annotated[
        str,
        typer.Option(help="auto, shared-memory, sockets or process-group (gloo, NCCL)."),
    ] = "auto",
    link: Annotated[
        str,
        typer.Option(help="real, or emulate one, as in gbps=1,latency_us=50."),
    ] = "real",
    show_stats: Annotated[
        bool, typer.Option("--stats", help="Print time to first token and per token as well.")
    ] = False,
) -> None:
    """Continue a prompt, on one device or on several that share the model."""
    from krakenlm.parallel.engine import EngineOptions
    from krakenlm.parallel.generation import Ranks
    from krakenlm.parallel.links import Link
    from krakenlm.parallel.placement import parse_placement
    from krakenlm.parallel.sampling import Sampling
    from krakenlm.parallel.texts import print_answer

    options = EngineOptions(
        placement=None if placement is None else parse_placement(placement),
        tensor_parallel=tensor_parallel,
        transport=transport,  # type: ignore[arg-type]
        link=Link.parse(link),
        prefill_chunks=prefill_chunks,
    )
    print_answer(
        model,
        prompt,
        ranks=Ranks(devices, device, threads),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        dtype=dtype,
        options=options,
        show_stats=show_stats,
    )
