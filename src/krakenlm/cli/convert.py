"""``krakenlm convert``: a checkpoint of the authors' release becomes a model folder."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CKPT.pt", help="A checkpoint of the authors' training script."),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="Gets config.json and model.safetensors.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|gpt2",
            help="Put this tokenizer into OUT_DIR too: the checkpoints hold none, and commands "
            "that read or write text need one.",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint of the authors' release into a model folder.

    Only tensors and plain values are read: code inside the file is never run.
    """
    from krakenlm.config import count_parameters
    from krakenlm.console import notes, results
    from krakenlm.integrations.authors_release import convert as convert_checkpoint

    config = convert_checkpoint(checkpoint, out, tokenizer)
    results.print(f"wrote {out}/config.json and {out}/model.safetensors", markup=False)
    results.print(
        f"{count_parameters(config):,} parameters: N={config.num_sublayers} sub-layers of width "
        f"d={config.hidden_size}, {config.num_hidden_layers} layers"
    )
    if tokenizer is None:
        notes.print("no tokenizer in it: --tokenizer gpt2 adds the one that the authors used")
