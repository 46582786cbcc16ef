"""How do documents become the two splits, from wherever an interrupted run stopped?

A document's split is decided by the hash of its first piece. When one split stays empty, the end
of the token stream is held out instead.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from krakenlm.console import notes, progress_bar
from krakenlm.data.corpus import Corpus
from krakenlm.data.manifest import SPLITS, Shard, Split, Splits
from krakenlm.data.progress import PROGRESS, Command, Progress, TailProgress
from krakenlm.data.shards import chunks, is_damaged, map_split
from krakenlm.data.tail import Stretch, Tail
from krakenlm.data.text import Piece
from krakenlm.data.tokenizer import encoder_of
from krakenlm.data.workers import Encoded, Encoding, encoded
from krakenlm.data.writer import SplitWriter
from krakenlm.errors import KrakenError

CUT = "cut"
"""The folder, within the one in the making, where the held-out tail is cut off."""

# Reading again what was tokenized already is fast: its progress is shown now and then.
_SHOWN_EVERY = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What must be known of the tokenizer.

    Attributes:
        engine: the contents of its ``tokenizer.json``.
        sha256: of that file.
        size: every token is below it.
        eos_id: the token that ends a document.
    """

    engine: str
    sha256: str
    size: int
    eos_id: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest little-endian type that holds every token."""
        return np.dtype("<u2" if self.size <= 1 << 16 else "<u4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What came of the text.

    Attributes:
        splits: their files and counts.
        validation_from: as in the manifest.
        text_bytes: the UTF-8 length of the text of each ``Piece.source``.
    """

    splits: Splits
    validation_from: Literal["documents", "tail"]
    text_bytes: Mapping[str, int]


def belongs_to_validation(first_piece: str, fraction: float) -> bool:
    """Whether the hash of a document's first piece puts it among the held-out ones."""
    digest = hashlib.blake2b(first_piece.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def write_splits(
    folder: Path,
    corpus: Corpus,
    vocabulary: Vocabulary,
    command: Command,
    progress: Progress | None,
    workers: int,
) -> Written:
    """Tokenize all text into the shards of both splits.

    Args:
        folder: where the shards go; whenever one is finished, ``progress.json`` says so.
        corpus: the text.
        vocabulary: of the tokenizer.
        command: what was asked for.
        progress: what an interrupted run left in the folder.
        workers: processes that tokenize.

    Raises:
        KrakenError: the text is damaged or too short; or, after an interruption, a shard is
            damaged or the text is another one.
    """
    if progress is not None:
        _check_what_is_there(folder, progress, vocabulary)
    with ExitStack() as stack:
        run = _Run(folder, vocabulary, command)
        for writer in run.writers.values():
            stack.enter_context(writer)
        stream = corpus.pieces()
        bar = stack.enter_context(progress_bar("{task.fields[tokens]} tokens"))
        task = bar.add_task(f"tokenizing, {corpus.unit}", total=corpus.total, tokens="0")

        def show(piece: Piece) -> None:
            bar.update(task, completed=corpus.done(piece), tokens=f"{run.tokens:,}")

        if progress is not None:
            run.go_on_from(progress, stream, show)
        encoding = Encoding(engine=vocabulary.engine, eos_id=vocabulary.eos_id)
        for batch in stack.enter_context(closing(encoded(stream, encoding, workers))):
            run.take(batch)
            show(batch.pieces[-1])
        bar.update(task, completed=corpus.total)
        shards = {name: writer.finish() for name, writer in run.writers.items()}
    return Written(
        splits=run.hold_out_tail(shards) if run.few else run.splits(shards),
        validation_from="tail" if run.few else "documents",
        text_bytes=run.tally.text_bytes,
    )


class _Tally:
    """What the text amounts to that has been read."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._split = "train"
        self._hash = hashlib.blake2b(digest_size=32)
        self.pieces = 0
        self.documents = dict.fromkeys(SPLITS, 0)
        self.bytes = dict.fromkeys(SPLITS, 0)
        self.text_bytes: Counter[str] = Counter()

    @property
    def text_hash(self) -> str:
        """Of all pieces, where they begin and end included."""
        return self._hash.hexdigest()

    def take(self, piece: Piece) -> tuple[str, int]:
        """Count a piece; returns its split and its length as UTF-8."""
        if piece.first:
            held_out = belongs_to_validation(piece.text, self._fraction)
            self._split = "validation" if held_out else "train"
        data = piece.text.encode()
        self._hash.update(b"%d %d " % (len(data), piece.last))
        self._hash.update(data)
        self.pieces += 1
        self.documents[self._split] += piece.last
        self.bytes[self._split] += len(data)
        self.text_bytes[piece.source] += len(data)
        return self._split, len(data)


class _Run:
    """The splits in the making."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, command: Command) -> None:
        self._folder = folder
        self._vocabulary = vocabulary
        self._command = command
        self._saved_shards = 0
        self.tally = _Tally(command.validation_fraction)
        self.tail = Tail(command.validation_fraction)
        self.tokens = 0
        self.writers = {name: self._writer(folder, name) for name in SPLITS}

    @property
    def few(self) -> bool:
        """Whether the documents were too few so far to give both splits one."""
        return not all(self.tally.documents.values())

    def go_on_from(
        self, progress: Progress, stream: Iterator[Piece], show: Callable[[Piece], None]
    ) -> None:
        """Read the text up to where an interrupted run came, and take what it wrote."""
        for piece in islice(stream, progress.pieces):
            self.tally.take(piece)
            if self.tally.pieces % _SHOWN_EVERY == 0:
                show(piece)
        if (self.tally.pieces, self.tally.text_hash) != (progress.pieces, progress.text_hash):
            raise KrakenError(
                f"the text is another than {self._folder} was begun with: bring it back as it "
                "was, or remove that folder to begin anew"
            )
        for name, writer in self.writers.items():
            writer.go_on_from(progress.train if name == "train" else progress.validation)
        self.tail = progress.tail.as_tail(self._command.validation_fraction)
        self.tokens = sum(writer.tokens for writer in self.writers.values())
        self._saved_shards = self._finished_shards()

    def take(self, batch: Encoded) -> None:
        """Write a batch's tokens, and down to where it came if that finished a shard."""
        self._check(batch)
        for piece, ids in batch.each():
            few = self.few
            split, size = self.tally.take(piece)
            self.writers[split].append(ids)
            self.tokens += len(ids)
            if few:
                self.tail.add(Stretch(tokens=len(ids), bytes=size, ends_document=piece.last))
        if not self.few:
            self.tail = Tail(self._command.validation_fraction)  # not needed any more
        if self._finished_shards() > self._saved_shards:
            self._progress().save(self._folder)
            self._saved_shards = self._finished_shards()

    def splits(self, shards: Mapping[str, tuple[Shard, ...]]) -> Splits:
        """The splits as whole documents gave them."""
        train, validation = (
            Split(
                documents=self.tally.documents[name],
                tokens=sum(shard.tokens for shard in shards[name]),
                bytes=self.tally.bytes[name],
                shards=shards[name],
            )
            for name in SPLITS
        )
        return Splits(train=train, validation=validation)

    def hold_out_tail(self, shards: Mapping[str, tuple[Shard, ...]]) -> Splits:
        """Divide the only split that has tokens: its end becomes the validation split."""
        written = shards["train"] or shards["validation"]
        tokens = map_split(self._folder, written, self._vocabulary.dtype)
        decode = partial(encoder_of(self._vocabulary.engine).decode, skip_special_tokens=False)
        cut = self.tail.cut(tokens, decode)
        apart = self._folder / CUT
        shutil.rmtree(apart, ignore_errors=True)
        apart.mkdir()
        halves = []
        ends = (0, cut.tokens, len(tokens))
        for name, (start, stop) in zip(SPLITS, pairwise(ends), strict=True):
            with self._writer(apart, name) as writer:
                for chunk in chunks(tokens, start, stop):
                    writer.append(chunk)
                halves.append(writer.finish())
        # From here on the files are no longer those that it describes.
        (self._folder / PROGRESS).unlink(missing_ok=True)
        for shard in written:
            (self._folder / shard.file).unlink()
        for path in list(apart.iterdir()):
            path.replace(self._folder / path.name)
        apart.rmdir()
        documents, size = sum(self.tally.documents.values()), sum(self.tally.bytes.values())
        return Splits(
            train=Split(
                documents=cut.documents + cut.inside_document,
                tokens=cut.tokens,
                bytes=cut.bytes,
                shards=halves[0],
            ),
            validation=Split(
                documents=documents - cut.documents,
                tokens=len(tokens) - cut.tokens,
                bytes=size - cut.bytes,
                shards=halves[1],
            ),
        )

    def _writer(self, folder: Path, name: str) -> SplitWriter:
        return SplitWriter(folder, name, self._vocabulary.dtype, self._command.shard_tokens)

    def _finished_shards(self) -> int:
        return sum(len(writer.shards) for writer in self.writers.values())

    def _check(self, batch: Encoded) -> None:
        if not len(batch.ids) or int(batch.ids.max()) < self._vocabulary.size:
            return
        for piece, ids in batch.each():
            largest = int(ids.max(initial=0))
            if largest >= self._vocabulary.size:
                raise KrakenError(
                    f"{piece.source}: the tokenizer gives token {largest}, outside its vocabulary "
                    f"of {self._vocabulary.size}: repair its tokenizer.json"
                )

    def _progress(self) -> Progress:
        return Progress(
            command=self._command,
            tokenizer_sha256=self._vocabulary.sha256,
            vocab_size=self._vocabulary.size,
            eos_id=self._vocabulary.eos_id,
            pieces=self.tally.pieces,
            text_hash=self.tally.text_hash,
            train=self.writers["train"].progress(),
            validation=self.writers["validation"].progress(),
            tail=TailProgress.of(self.tail),
        )


def _check_what_is_there(folder: Path, progress: Progress, vocabulary: Vocabulary) -> None:
    """Compare the finished shards with their sums, and remove what came after them."""
    halves = {"train": progress.train, "validation": progress.validation}
    finished = [shard for half in halves.values() for shard in half.shards]
    for shard in finished:
        with notes.status(f"checking {shard.file}"):
            if is_damaged(folder / shard.file, shard, vocabulary.dtype, vocabulary.size):
                raise KrakenError(
                    f"{folder / shard.file} is damaged (its sha256 is not the one it was written "
                    f"with): remove {folder} to begin anew"
                )
    said = f"going on after {len(finished)} finished shards in {folder}"
    notes.print(said, markup=False, soft_wrap=True)
    kept = {shard.file for shard in finished}
    kept |= {f"{name}-{len(half.shards):05d}.bin" for name, half in halves.items()}
    for path in folder.glob("*.bin"):
        if path.name not in kept:
            path.unlink()
