"""Where a folder keeps its tokenizer, and what is wrong with it, however it is loaded."""

import codecs
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from krakenlm.errors import KrakenError, first_line
from krakenlm.strict import read_json
from krakenlm.utf8 import read_utf8

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_JSON = "tokenizer.json"


class TokenizerFolder(NamedTuple):
    """The folder that holds the files.

    Attributes:
        folder: of a model, or ``tokenizer`` inside what ``krakenlm prepare`` made.
        has_json: whether there is a ``tokenizer.json``, or only GPT-2's two files.
    """

    folder: Path
    has_json: bool


def find_tokenizer(directory: Path) -> TokenizerFolder:
    """Where a directory has its tokenizer.

    Raises:
        KrakenError: nowhere, or in a file that the tokenizers library does not read.
    """
    for folder in _folders(directory):
        if (folder / TOKENIZER_JSON).is_file():
            _refuse_mark(folder / TOKENIZER_JSON)
            return TokenizerFolder(folder, has_json=True)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return TokenizerFolder(folder, has_json=False)
    raise KrakenError(
        f"{directory} holds no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"
    )


def tokenizer_file(directory: Path) -> Path | None:
    """The ``tokenizer.json`` of a directory; None where there is none."""
    files = (folder / TOKENIZER_JSON for folder in _folders(directory))
    return next((file for file in files if file.is_file()), None)


def byte_level(bpe: "BPE") -> "Tokenizer":
    """GPT-2's kind of engine."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def from_gpt2_files(folder: Path) -> "Tokenizer":
    """The engine that GPT-2's ``vocab.json`` and ``merges.txt`` describe.

    Raises:
        KrakenError: one of them is damaged, or they have no end of text.
    """
    from tokenizers import models

    # Read here, as the library takes a byte order mark for a part of the file.
    vocabulary = read_json(folder / "vocab.json", "copy it again")
    try:
        lines = read_utf8(folder / "merges.txt").splitlines()
        merges = [_pair(line) for line in lines if not line.startswith("#version")]
        bpe = models.BPE(vocabulary, merges)
    except KrakenError:
        raise
    except Exception as error:  # the Rust side raises nothing more precise
        raise KrakenError(
            f"vocab.json and merges.txt in {folder} are damaged ({error}): copy them again"
        ) from error
    tokenizer = byte_level(bpe)
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise KrakenError(
            f"{folder / 'vocab.json'} has no entry {END_OF_TEXT}, which ends a document: add it"
        )
    return tokenizer


def vocabulary_of(engine: "Tokenizer") -> int:
    """What every id is below: the number of entries, or more where ids are left out."""
    return max(engine.get_vocab(with_added_tokens=True).values()) + 1


def cannot_load(source: object, error: Exception) -> KrakenError:
    """What to say where a library refuses a tokenizer."""
    return KrakenError(
        f"cannot load tokenizer {source} ({first_line(error)}): check it, or pass another "
        "--tokenizer DIR"
    )


def no_end_of_text(source: object) -> KrakenError:
    """What to say of a tokenizer that cannot end a document."""
    return KrakenError(
        f"tokenizer {source} has no end-of-text token to end documents with: "
        "set eos_token in its tokenizer_config.json"
    )


def _folders(directory: Path) -> tuple[Path, Path]:
    """Where a directory may have its tokenizer: a model, and what ``prepare`` made."""
    return directory, directory / "tokenizer"


def _refuse_mark(path: Path) -> None:
    with suppress(OSError), path.open("rb") as file:  # who loads it says what is wrong with it
        if file.read(3) == codecs.BOM_UTF8:
            raise KrakenError(
                f"{path} begins with a byte order mark, which the tokenizers library does not "
                f"read: leave its three bytes out, tail -c +4 {path} > NEW"
            )


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right
