"""``krakenlm convert``: models of other families in and out, and models in another wiring."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from krakenlm.cli.options import CheckOption, check_if
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.config import ModelConfig
    from krakenlm.integrations.pretrained.sources import Source
    from krakenlm.integrations.rewiring import Rewired


class _Rewiring(NamedTuple):
    """The options that choose a wiring or a layout; None leaves it to the model."""

    wiring: str | None
    num_sublayers: int | None
    message_parts: int | None
    late_layers: str | None

    @property
    def is_asked_for(self) -> bool:
        return any(value is not None for value in self)


_OF_REWIRING = "--wiring, --sublayers, --message-parts and --late-layers"

_Source = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL|FILE.gguf|CKPT.pt",
        help="The folder of a model, ours or one of Transformers (Llama, Mistral, Qwen2, "
        "Qwen3, GPT-2, GPT-NeoX); a GGUF file; or a checkpoint of the authors' training "
        "script.",
    ),
]
_Out = Annotated[
    Path, typer.Argument(metavar="OUT_DIR", help="Gets config.json and model.safetensors.")
]
_To = Annotated[
    Literal["krakenlm", "transformers"],
    typer.Option(
        help="What to write. transformers is the layout of the family that a model came from, "
        "or of one that has such models: it needs no krakenlm."
    ),
]
_Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|gpt2",
        help="Put this tokenizer into OUT_DIR: the authors' checkpoints hold none, and "
        "commands that read or write text need one. Of another family's model: instead of its "
        "own.",
    ),
]
_Wiring = Annotated[
    str | None,
    typer.Option(
        help="Of a model: another wiring of the same weights, such as shared or lagged. It is "
        "another function, so the model must be trained further."
    ),
]
_Sublayers = Annotated[
    int | None,
    typer.Option(
        "--sublayers",
        "-n",
        help="Of a model: branches to lay its weights out for. For shared each number is "
        "another function.",
    ),
]
_MessageParts = Annotated[
    int | None,
    typer.Option(
        help="Of a shared or kraken-shared model: groups of channels, of which each layer sums "
        "one. Each number is another function.",
    ),
]
_LateLayers = Annotated[
    str | None,
    typer.Option(
        metavar="LAYERS",
        help="Of a model in shared, lagged, lagged-layer or ladder: only these layers, such as "
        "16-29, hide their sums; the others await theirs. all is all of them. Each choice is "
        "another function.",
    ),
]


def convert(
    source: _Source,
    out: _Out,
    to: _To = "krakenlm",
    tokenizer: _Tokenizer = None,
    wiring: _Wiring = None,
    sublayers: _Sublayers = None,
    message_parts: _MessageParts = None,
    late_layers: _LateLayers = None,
    check: CheckOption = False,
) -> None:
    """Bring in a model of another family, or give a model another wiring or layout.

    Only tensors and plain values are read: code inside the files is never run.
    """
    from krakenlm.console import results

    rewiring = _Rewiring(wiring, sublayers, message_parts, late_layers)
    if to == "transformers":
        check_if(check, source)
        family = _export(source, out, rewiring, tokenizer)
        results.print(f"wrote {out}: a {family} model for Transformers", markup=False)
        return
    config = _converted(source, out, rewiring, tokenizer)
    try:
        check_if(check, out, called=source)
    except KrakenError:
        shutil.rmtree(out)
        raise
    _say_what_was_written(out, config)


def _converted(
    source: Path, out: Path, rewiring: _Rewiring, tokenizer: str | None
) -> "ModelConfig":
    if not source.is_dir() and not source.is_file():
        return _read_release(source, out, rewiring, tokenizer)  # which says that there is nothing
    from krakenlm.integrations.pretrained.opening import foreign_source

    foreign = foreign_source(source)
    if foreign is not None:
        return _bring_in(foreign, out, rewiring, tokenizer)
    if source.is_dir():
        if tokenizer is not None:
            raise KrakenError("--tokenizer: a model folder brings its own: leave it out")
        return _rewire(source, out, rewiring)
    return _read_release(source, out, rewiring, tokenizer)


def _bring_in(
    source: "Source", out: Path, rewiring: _Rewiring, tokenizer: str | None
) -> "ModelConfig":
    from krakenlm.console import print_note
    from krakenlm.integrations.pretrained.importing import import_model

    imported = import_model(source, out, tokenizer=tokenizer, **rewiring._asdict())
    for note in imported.notes:
        print_note(f"note: {note}")
    if not imported.has_tokenizer:
        print_note(
            "no tokenizer in it, which commands that read or write text need: --tokenizer DIR adds "
            "one"
        )
    return _with_a_word_on_its_function(imported.rewired)


def _rewire(source: Path, out: Path, rewiring: _Rewiring) -> "ModelConfig":
    from krakenlm.integrations.rewiring import rewire

    return _with_a_word_on_its_function(rewire(source, out, **rewiring._asdict()))


def _with_a_word_on_its_function(rewired: "Rewired") -> "ModelConfig":
    from krakenlm.console import print_note

    if rewired.is_another_function:
        print_note(
            f"the weights were trained as another function ({rewired.before}): train the model "
            "further before you use it"
        )
    return rewired.config


def _read_release(
    source: Path, out: Path, rewiring: _Rewiring, tokenizer: str | None
) -> "ModelConfig":
    from krakenlm.console import notes
    from krakenlm.integrations.authors_release import convert as convert_checkpoint

    if rewiring.is_asked_for:
        raise KrakenError(
            f"{_OF_REWIRING} need a model, and {source} is none: convert the checkpoint first"
        )
    config = convert_checkpoint(source, out, tokenizer)
    if tokenizer is None:
        notes.print("no tokenizer in it: --tokenizer gpt2 adds the one that the authors used")
    return config


def _export(source: Path, out: Path, rewiring: _Rewiring, tokenizer: str | None) -> str:
    from krakenlm.integrations.pretrained.exporting import export_model

    if rewiring.is_asked_for or tokenizer is not None:
        raise KrakenError(
            f"--to transformers: {_OF_REWIRING} and --tokenizer are for models of ours: leave them "
            "out, or convert twice"
        )
    return export_model(source, out)


def _say_what_was_written(out: Path, config: "ModelConfig") -> None:
    from krakenlm.config import count_parameters
    from krakenlm.console import results

    files = sorted(path.name for path in out.glob("model*.safetensors"))
    weights = files[0] if len(files) == 1 else f"{len(files)} files of weights"
    results.print(f"wrote {out}/config.json and {out}/{weights}", markup=False)
    results.print(
        f"{count_parameters(config):,} parameters: {config.wiring}, N={config.num_sublayers} "
        f"sub-layers of width d={config.hidden_size}, {config.num_hidden_layers} layers"
    )
