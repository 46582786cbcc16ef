"""How are the token files of a prepared directory made and read?

``OUT/train-00000.bin``, ``OUT/validation-00000.bin`` and so on hold little-endian token ids, each
document ended by the end-of-text token; ``OUT/tokenizer/`` the tokenizer; ``OUT/manifest.json`` the
counts and sums. While it is made, the directory is called ``OUT.unfinished``.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from krakenlm.console import notes, progress_bar
from krakenlm.data.bad_text import Skipped
from krakenlm.data.corpus import Corpus, Rows, TextFiles
from krakenlm.data.hub import HubDataset
from krakenlm.data.manifest import MANIFEST, SPLITS, Manifest, Split, Tokenizer, sha256_of
from krakenlm.data.preparation import CUT, Vocabulary, write_splits
from krakenlm.data.progress import PROGRESS, Command, Progress
from krakenlm.data.same_tokenizer import ids_sha256
from krakenlm.data.shards import WHAT_TO_DO, Tokens, is_damaged, map_split
from krakenlm.data.text import check_files
from krakenlm.data.tokenizer import check_lossless, tokenizer_for, vocabulary_size
from krakenlm.errors import KrakenError
from krakenlm.files import LOCK, resumable_directory, unfinished

__all__ = [
    "SPLITS",
    "HubDataset",
    "Manifest",
    "TokenSplit",
    "Tokens",
    "open_split",
    "prepare",
    "verify",
]

SHARD_TOKENS = 100_000_000
# Read and hashed within a tenth of a second or two.
_SMALL_BYTES = 64 << 20
_TOKENIZER_JSON = Path("tokenizer") / "tokenizer.json"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSplit:
    """A split's tokens, mapped from the disk, and what the manifest says about them.

    Attributes:
        tokens: one-dimensional and read-only, uint16 or uint32; an array where the split has one
            shard. Its slices are arrays always, also those that span shards.
        info: counts and shards of this split.
        manifest: of the whole directory.
        path: the token file; of several, the pattern of their names.
    """

    tokens: Tokens
    info: Split
    manifest: Manifest
    path: Path


def prepare(
    texts: Sequence[str | Path] | HubDataset,
    tokenizer: str,
    out: str | Path,
    *,
    validation_fraction: float = 0.02,
    replace: bool = False,
    column: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    workers: int = 1,
    skip_bad: bool = False,
) -> Manifest:
    """Tokenize text into a directory of memory-mapped token files.

    Whether a document is for training or validation depends on the hash of its text alone (of its
    first piece), so adding text never moves one. When the documents are so few that a split would
    stay empty, the tail of the token stream is held out instead, and the manifest says so.

    An interruption leaves the finished shards in ``OUT.unfinished``; the same call goes on from
    there, to the same bytes. Without a finished shard it leaves nothing.

    Args:
        texts: files as ``krakenlm.data.text`` reads them, one that is named twice read once; or a
            dataset.
        tokenizer: ``DIR``, ``train:VOCAB`` or a Hub name such as ``gpt2``.
        out: the directory to make, whole or not at all.
        validation_fraction: the share of documents held out.
        replace: whether an existing prepared directory may be replaced.
        column: the key or column with the text, in files that have such.
        shard_tokens: tokens of a token file.
        workers: processes that tokenize; the bytes do not depend on it. More than one need a main
            module that may be imported, as everywhere with ``multiprocessing``.
        skip_bad: leave out what cannot be read: a line, a row, the rest of a damaged file. The
            first of them are named when all is done, and the manifest counts them. Also what was
            begun without goes on with it.

    Raises:
        BadTextError: a part of the text cannot be read, and ``skip_bad`` is not set.
        KrakenError: anything wrong with the text, the tokenizer or the output directory.
    """
    out = Path(out)
    _check_numbers(validation_fraction, shard_tokens, workers)
    skipped = Skipped(allowed=skip_bad)
    open_corpus = _corpus_opener(texts, column, skipped)
    with _in_the_making(out, replace) as folder:
        corpus = open_corpus()
        command = Command(
            sources=corpus.names,
            tokenizer=tokenizer,
            validation_fraction=validation_fraction,
            shard_tokens=shard_tokens,
        )
        manifest = _fill(folder, corpus, command, workers)
        manifest.save(folder)
    (out / PROGRESS).unlink(missing_ok=True)
    _name(skipped, manifest)
    return manifest


def open_split(directory: str | Path, split: str, *, verify: bool | None = None) -> TokenSplit:
    """Map a split of a prepared directory into memory.

    Args:
        directory: what ``prepare`` made.
        split: ``train`` or ``validation``.
        verify: also read all of it and compare each sha256 and the largest token; if not given,
            splits of up to 64 MiB are. Sizes are compared always.

    Raises:
        KrakenError: no such directory or split, or a token file is missing or damaged.
    """
    directory = Path(directory)
    if split not in SPLITS:
        raise KrakenError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")
    manifest = Manifest.load(directory)
    info, dtype = manifest.split(split), _dtype(manifest)
    tokens = map_split(directory, info.shards, dtype)
    if verify or (verify is None and info.tokens * dtype.itemsize <= _SMALL_BYTES):
        for shard in info.shards:
            path = directory / shard.file
            if is_damaged(path, shard, dtype, manifest.vocab_size):
                raise KrakenError(
                    f"{path} is damaged (it is not what the manifest describes): {WHAT_TO_DO}"
                )
    several = len(info.shards) > 1
    path = directory / (f"{split}-*.bin" if several else info.shards[0].file)
    return TokenSplit(tokens=tokens, info=info, manifest=manifest, path=path)


def verify(directory: str | Path) -> Manifest:
    """Read all of a prepared directory and compare it with its manifest.

    Raises:
        KrakenError: it is no prepared directory, or files are missing or damaged: all are named.
    """
    directory = Path(directory)
    manifest = Manifest.load(directory)
    dtype, damaged = _dtype(manifest), []
    shards = [shard for split in SPLITS for shard in manifest.split(split).shards]
    with progress_bar() as progress:
        task = progress.add_task("checking, files", total=len(shards) + 1)
        for shard in shards:
            if is_damaged(directory / shard.file, shard, dtype, manifest.vocab_size):
                damaged.append(shard.file)
            progress.advance(task)
        saved = directory / _TOKENIZER_JSON
        if not saved.is_file() or sha256_of(saved) != manifest.tokenizer.sha256:
            damaged.append(str(_TOKENIZER_JSON))
        progress.advance(task)
    if damaged:
        raise KrakenError(
            f"{directory} is damaged: missing or not what the manifest describes: "
            f"{', '.join(damaged)}: copy again from where it is whole, or prepare the text again"
        )
    return manifest


def _dtype(manifest: Manifest) -> np.dtype[np.unsignedinteger]:
    return np.dtype(manifest.dtype).newbyteorder("<")


def _check_numbers(validation_fraction: float, shard_tokens: int, workers: int) -> None:
    if not 0 < validation_fraction <= 0.5:
        raise KrakenError(
            f"a validation fraction of {validation_fraction} cannot work: choose one above 0 and "
            "at most 0.5"
        )
    if shard_tokens < 1:
        raise KrakenError(f"{shard_tokens} tokens a shard cannot work: choose 1 or more")
    if workers < 1:
        raise KrakenError(f"{workers} workers cannot work: choose 1 or more")


def _corpus_opener(
    texts: Sequence[str | Path] | HubDataset, column: str, skipped: Skipped
) -> Callable[[], Corpus]:
    """Files are checked now; a dataset, which may be long to load, is opened when it is wanted."""
    if isinstance(texts, HubDataset):
        return partial(Rows.load, texts, skipped)
    sizes = check_files([Path(text) for text in texts])
    files = TextFiles(sizes=sizes, column=column, skipped=skipped)
    return lambda: files


def _name(skipped: Skipped, manifest: Manifest) -> None:
    """Say what was left out, when all is done."""
    if not manifest.skipped:
        return
    few = manifest.skipped == len(skipped.named)
    which = "" if few else f"; the first {len(skipped.named)}"
    what = "bad line" if manifest.skipped == 1 else "bad lines"
    note = f"note: {manifest.skipped:,} {what} left out, counted in {MANIFEST}{which}:"
    notes.print("\n  ".join([note, *skipped.named]), markup=False, soft_wrap=True)


@contextmanager
def _in_the_making(out: Path, replace: bool) -> Iterator[Path]:
    """The folder that becomes ``out``, with what an interrupted run left in it."""
    if replace:
        _check_contents(out, "prepared directory", MANIFEST)
    _check_contents(unfinished(out), "preparation that was interrupted", None)
    try:
        with resumable_directory(out, replace=replace, worth_keeping=_has_progress) as folder:
            yield folder
    except BaseException:
        if _has_progress(unfinished(out)):
            notes.print(
                f"note: {unfinished(out)} keeps the finished shards; the same command goes on "
                "from there",
                markup=False,
                soft_wrap=True,
            )
        raise


def _has_progress(folder: Path) -> bool:
    return (folder / PROGRESS).is_file()


def _check_contents(folder: Path, what: str, needed: str | None) -> None:
    """What is replaced or gone on with must hold nothing that ``prepare`` did not write."""
    if not folder.exists():
        return
    ours = re.compile(
        rf"(train|validation)(-\d+)?\.bin|tokenizer|{CUT}|{MANIFEST}|{PROGRESS}"
        rf"|\.({MANIFEST}|{PROGRESS})-partial-.*|{re.escape(LOCK)}"
    )
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    foreign = not folder.is_dir() or any(not ours.fullmatch(name) for name in found)
    if foreign or (found and needed is not None and needed not in found):
        raise KrakenError(
            f"{folder} is not a {what} and nothing else, so it is not replaced: remove it "
            "yourself or choose another output folder"
        )


def _fill(folder: Path, corpus: Corpus, command: Command, workers: int) -> Manifest:
    """Write token files and tokenizer into the folder, and say what they are."""
    progress = Progress.load(folder, command)
    if progress is None:
        vocabulary = _new_vocabulary(folder, corpus, command.tokenizer)
    else:
        vocabulary = _saved_vocabulary(folder, progress)
    written = write_splits(folder, corpus, vocabulary, command, progress, workers)
    return Manifest(
        dtype="uint16" if vocabulary.dtype.itemsize == 2 else "uint32",
        vocab_size=vocabulary.size,
        eos_id=vocabulary.eos_id,
        tokenizer=Tokenizer(
            source=command.tokenizer,
            sha256=vocabulary.sha256,
            ids_sha256=ids_sha256(vocabulary.engine),
        ),
        validation_fraction=command.validation_fraction,
        validation_from=written.validation_from,
        splits=written.splits,
        sources=corpus.sources(written.text_bytes),
    )


def _new_vocabulary(folder: Path, corpus: Corpus, tokenizer: str) -> Vocabulary:
    """Save the tokenizer in the folder, emptied of what an interrupted run left."""
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    chosen = tokenizer_for(tokenizer, corpus.sample)
    check_lossless(chosen, tokenizer)
    chosen.save_pretrained(str(folder / "tokenizer"))
    saved = folder / _TOKENIZER_JSON
    return Vocabulary(
        engine=saved.read_text(encoding="utf-8"),
        sha256=sha256_of(saved),
        size=vocabulary_size(chosen),
        eos_id=chosen.eos_token_id,
    )


def _saved_vocabulary(folder: Path, progress: Progress) -> Vocabulary:
    """The vocabulary that an interrupted run began with: learning it again could give another."""
    saved = folder / _TOKENIZER_JSON
    if not saved.is_file() or sha256_of(saved) != progress.tokenizer_sha256:
        raise KrakenError(f"{saved} is damaged: remove {folder} to begin anew")
    return Vocabulary(
        engine=saved.read_text(encoding="utf-8"),
        sha256=progress.tokenizer_sha256,
        size=progress.vocab_size,
        eos_id=progress.eos_id,
    )
