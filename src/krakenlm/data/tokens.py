"""How are the token files of a prepared directory made and read?

``OUT/train.bin`` and ``OUT/validation.bin`` hold little-endian token ids, each document ended by
the end-of-text token; ``OUT/tokenizer/`` the tokenizer; ``OUT/manifest.json`` the counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from krakenlm.data.manifest import MANIFEST, Manifest, Source, Split, Splits, Tokenizer, sha256_of
from krakenlm.data.text import check_files
from krakenlm.data.tokenizer import check_lossless, encode, plain_encoder, tokenizer_for
from krakenlm.data.writer import Vocabulary, hold_out_tail, write_splits
from krakenlm.errors import KrakenError
from krakenlm.files import whole_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["SPLITS", "Manifest", "TokenSplit", "open_split", "prepare"]

SPLITS = ("train", "validation")
# Two tokens are one prediction: with less there is nothing to learn or to measure.
_FEWEST_TOKENS = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSplit:
    """A split's tokens, mapped from the disk, and what the manifest says about them.

    Attributes:
        tokens: one-dimensional and read-only, uint16 or uint32.
        info: counts and sha256 of this split.
        manifest: of the whole directory.
        path: the token file.
    """

    tokens: NDArray[Any]
    info: Split
    manifest: Manifest
    path: Path


def prepare(
    texts: Sequence[str | Path],
    tokenizer: str,
    out: str | Path,
    *,
    validation_fraction: float = 0.02,
    replace: bool = False,
) -> Manifest:
    """Tokenize text files into a directory of memory-mapped token files.

    Whether a document is for training or validation depends on the hash of its text alone (of its
    first piece), so adding text never moves one. When the documents are so few that a split would
    stay empty, the tail of the token stream is held out instead, and the manifest says so.

    Args:
        texts: files as ``krakenlm.data.text`` reads them; one that is named twice is read once.
        tokenizer: ``DIR``, ``train:VOCAB`` or a Hub name such as ``gpt2``.
        out: the directory to make, whole or not at all.
        validation_fraction: the share of documents held out.
        replace: whether an existing prepared directory may be replaced.

    Raises:
        KrakenError: anything wrong with the text, the tokenizer or the output directory.
    """
    out = Path(out)
    if not 0 < validation_fraction <= 0.5:
        raise KrakenError(
            f"a validation fraction of {validation_fraction} cannot work: choose one above 0 and "
            "at most 0.5"
        )
    sizes = check_files([Path(text) for text in texts])
    if replace:
        _check_replaceable(out)
    with whole_directory(out, replace=replace) as folder:
        manifest = _fill(folder, sizes, tokenizer, validation_fraction)
        manifest.save(folder)
    return manifest


def open_split(directory: str | Path, split: str, *, verify: bool = False) -> TokenSplit:
    """Map a split of a prepared directory into memory.

    Args:
        directory: what ``prepare`` made.
        split: ``train`` or ``validation``.
        verify: also read the whole file and compare its sha256 and its largest token.

    Raises:
        KrakenError: no such directory or split, or the token file is missing or damaged.
    """
    directory = Path(directory)
    if split not in SPLITS:
        raise KrakenError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")
    manifest = Manifest.load(directory)
    info: Split = getattr(manifest.splits, split)
    path = directory / f"{split}.bin"
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    try:
        size, expected = path.stat().st_size, info.tokens * dtype.itemsize
        if size != expected or size == 0:
            raise KrakenError(
                f"{path} has {size} bytes where {info.tokens} tokens of {manifest.dtype} need "
                f"{expected}: it is truncated or damaged; prepare the text again"
            )
        tokens = np.memmap(path, dtype=dtype, mode="r")
        if verify and (sha256_of(path) != info.sha256 or tokens.max() >= manifest.vocab_size):
            raise KrakenError(
                f"{path} is damaged (it is not what the manifest describes): prepare the text again"
            )
    except FileNotFoundError:
        raise KrakenError(f"{path} is missing: prepare the text again") from None
    except OSError as error:
        raise KrakenError(f"cannot read {path}: {error.strerror or error}") from error
    return TokenSplit(tokens=tokens, info=info, manifest=manifest, path=path)


def _check_replaceable(out: Path) -> None:
    """Replacing deletes what is there: that must be a prepared directory and nothing else."""
    if not out.exists():
        return
    ours = {MANIFEST, "tokenizer", *(f"{split}.bin" for split in SPLITS)}
    found = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    if found - ours or (found and MANIFEST not in found):
        raise KrakenError(
            f"{out} is not a prepared directory and nothing else, so it is not replaced: remove it "
            "yourself or choose another output folder"
        )


def _fill(
    folder: Path, sizes: Mapping[Path, int], tokenizer: str, validation_fraction: float
) -> Manifest:
    """Write token files and tokenizer into the folder, and say what they are."""
    chosen = tokenizer_for(tokenizer, list(sizes))
    check_lossless(chosen, tokenizer)
    encoder = plain_encoder(chosen)
    vocabulary = Vocabulary(
        encode=partial(encode, encoder),
        size=max(chosen.get_vocab().values()) + 1,
        eos_id=chosen.eos_token_id,
    )
    train, validation, text_bytes = write_splits(folder, sizes, vocabulary, validation_fraction)
    few = not (train.documents and validation.documents)
    if few:
        decode = partial(encoder.decode, skip_special_tokens=False)
        hold_out_tail(train, validation, validation_fraction, decode, fewest=_FEWEST_TOKENS)
    sha256 = _save_tokenizer(chosen, folder / "tokenizer")
    return Manifest(
        dtype="uint16" if vocabulary.dtype.itemsize == 2 else "uint32",
        vocab_size=vocabulary.size,
        eos_id=vocabulary.eos_id,
        tokenizer=Tokenizer(source=tokenizer, sha256=sha256),
        validation_fraction=validation_fraction,
        validation_from="tail" if few else "documents",
        splits=Splits(train=train.as_split(), validation=validation.as_split()),
        sources=tuple(Source(path=str(path), bytes=text_bytes[path]) for path in sizes),
    )


def _save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> str:
    """Write the tokenizer's files; returns the sha256 of ``tokenizer.json``."""
    tokenizer.save_pretrained(str(folder))
    return sha256_of(folder / "tokenizer.json")
