"""``krakenlm convert``: another checkpoint, or another wiring, becomes a model folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.config import ModelConfig


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT.pt|MODEL",
            help="A checkpoint of the authors' training script, or the folder of a model.",
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="Gets config.json and model.safetensors.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|gpt2",
            help="Put this tokenizer into OUT_DIR too: the authors' checkpoints hold none, and "
            "commands that read or write text need one.",
        ),
    ] = None,
    wiring: Annotated[
        str | None,
        typer.Option(
            help="Of a model: another wiring of the same weights, such as shared or lagged. It is "
            "another function, so the model must be trained further."
        ),
    ] = None,
    sublayers: Annotated[
        int | None,
        typer.Option(
            "--sublayers",
            "-n",
            help="Of a model: branches to lay its weights out for. For shared each number is "
            "another function.",
        ),
    ] = None,
    message_parts: Annotated[
        int | None,
        typer.Option(
            help="Of a shared or kraken-shared model: groups of channels, of which each layer sums "
            "one. Each number is another function.",
        ),
    ] = None,
    late_layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Of a model in shared, lagged, lagged-layer or ladder: only these layers, such as "
            "16-29, hide their sums; the others await theirs. all is all of them. Each choice is "
            "another function.",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint of the authors' release, or a model to another wiring.

    Only tensors and plain values are read: code inside the file is never run.
    """
    from krakenlm.config import count_parameters
    from krakenlm.console import results

    if source.is_dir():
        if tokenizer is not None:
            raise KrakenError("--tokenizer: a model folder brings its own: leave it out")
        config = _rewire(source, out, wiring, sublayers, message_parts, late_layers)
    else:
        if any(value is not None for value in (wiring, sublayers, message_parts, late_layers)):
            raise KrakenError(
                "--wiring, --sublayers, --message-parts and --late-layers need the folder of a "
                f"model, and {source} is none: convert the checkpoint first"
            )
        config = _read_release(source, out, tokenizer)
    results.print(f"wrote {out}/config.json and {out}/model.safetensors", markup=False)
    results.print(
        f"{count_parameters(config):,} parameters: {config.wiring}, N={config.num_sublayers} "
        f"sub-layers of width d={config.hidden_size}, {config.num_hidden_layers} layers"
    )


def _rewire(
    source: Path,
    out: Path,
    wiring: str | None,
    sublayers: int | None,
    message_parts: int | None,
    late_layers: str | None,
) -> "ModelConfig":
    from krakenlm.console import notes
    from krakenlm.integrations.rewiring import rewire

    rewired = rewire(
        source,
        out,
        wiring=wiring,
        num_sublayers=sublayers,
        message_parts=message_parts,
        late_layers=late_layers,
    )
    if rewired.is_another_function:
        notes.print(
            f"the weights were trained as another function ({rewired.before}): train the model "
            "further before you use it"
        )
    return rewired.config


def _read_release(source: Path, out: Path, tokenizer: str | None) -> "ModelConfig":
    from krakenlm.console import notes
    from krakenlm.integrations.authors_release import convert as convert_checkpoint

    config = convert_checkpoint(source, out, tokenizer)
    if tokenizer is None:
        notes.print("no tokenizer in it: --tokenizer gpt2 adds the one that the authors used")
    return config
