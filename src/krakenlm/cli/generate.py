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
    show_stats: Annotated[
        bool, typer.Option("--stats", help="Print time to first token and per token as well.")
    ] = False,
) -> None:
    """Continue a prompt, on one device or on several that share the model."""
    from krakenlm.parallel.generation import generate_text
    from krakenlm.parallel.sampling import Sampling

    generate_text(
        model,
        prompt,
        devices=devices,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        dtype=dtype,
        device_type=device,
        show_stats=show_stats,
    )
