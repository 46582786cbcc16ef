"""Which tokens go into which file?

A document's split is decided by the hash of its first piece. ``SplitFile`` keeps the counts; when
one split stays empty, ``hold_out_tail`` cuts the token stream instead.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from krakenlm.console import progress_bar
from krakenlm.data.manifest import Split, sha256_of
from krakenlm.data.text import Piece, pieces, utf8_length
from krakenlm.errors import KrakenError

# Enough text to keep all cores busy; while it is encoded, its tokens take some hundred MB.
_BATCH_CHARS = 1 << 21
_BATCH_PIECES = 4096
# How far to look for a token that begins a character; byte-level BPE needs at most three steps.
_STEPS_TO_CHARACTER = 16

Encode = Callable[[list[str]], list[list[int]]]
Decode = Callable[[list[int]], str]


class Stretch(NamedTuple):
    """What one piece became in a token file."""

    tokens: int
    bytes: int
    ends_document: bool


@dataclass(kw_only=True, slots=True)
class SplitFile:
    """A token file in the making; ``stretches`` is kept only while the tail may be needed."""

    path: Path
    dtype: np.dtype[np.unsignedinteger]
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    stretches: list[Stretch] = field(default_factory=list)

    def add(self, file: BinaryIO, ids: list[int], stretch: Stretch) -> None:
        """Append one piece's tokens."""
        file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.stretches.append(stretch)
        self.documents += stretch.ends_document
        self.tokens += stretch.tokens
        self.bytes += stretch.bytes

    def as_split(self) -> Split:
        """The manifest's entry, with the sha256 of the file as it is on the disk."""
        return Split(
            documents=self.documents,
            tokens=self.tokens,
            bytes=self.bytes,
            sha256=sha256_of(self.path),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What the writer must know of the tokenizer."""

    encode: Encode
    size: int
    eos_id: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest little-endian type that holds every token."""
        return np.dtype("<u2" if self.size <= 1 << 16 else "<u4")


def write_splits(
    folder: Path, sizes: Mapping[Path, int], vocabulary: Vocabulary, validation_fraction: float
) -> tuple[SplitFile, SplitFile, Counter[Path]]:
    """Tokenize the files into ``train.bin`` and ``validation.bin``.

    Returns:
        The two files (either may be empty) and the UTF-8 length of each file's text.
    """
    train, validation = (
        SplitFile(path=folder / f"{name}.bin", dtype=vocabulary.dtype)
        for name in ("train", "validation")
    )
    text_bytes: Counter[Path] = Counter()
    split = train
    with ExitStack() as stack:
        files = {
            id(each): stack.enter_context(each.path.open("wb")) for each in (train, validation)
        }
        for piece, ids in _encoded(sizes, vocabulary):
            if piece.first:
                held_out = belongs_to_validation(piece.text, validation_fraction)
                split = validation if held_out else train
            if piece.last:
                ids.append(vocabulary.eos_id)
            size = utf8_length(piece.text)
            split.add(files[id(split)], ids, Stretch(len(ids), size, piece.last))
            text_bytes[piece.path] += size
            if train.documents and validation.documents:
                train.stretches.clear()
                validation.stretches.clear()
    return train, validation, text_bytes


def belongs_to_validation(first_piece: str, fraction: float) -> bool:
    """Whether the hash of a document's first piece puts it among the held-out ones."""
    digest = hashlib.blake2b(first_piece.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def hold_out_tail(
    train: SplitFile, validation: SplitFile, fraction: float, decode: Decode, *, fewest: int
) -> None:
    """Make the last ``fraction`` of the tokens the validation split.

    The cut never falls inside a character, so the bytes of both sides are counted exactly.

    Raises:
        KrakenError: the text is too short for ``fewest`` tokens on either side.
    """
    if not train.tokens:
        _move_all(validation, train)
    cut, before = _place_to_cut(train, max(fewest, round(fraction * train.tokens)), decode)
    if cut < fewest or train.tokens - cut < fewest:
        raise KrakenError(
            f"{train.tokens} tokens of text are too little to train on and to hold some out: "
            "add text, or choose a larger validation fraction"
        )
    with train.path.open("r+b") as source, validation.path.open("wb") as target:
        source.seek(cut * train.dtype.itemsize)
        shutil.copyfileobj(source, target)
        source.truncate(cut * train.dtype.itemsize)
    validation.tokens = train.tokens - cut
    validation.bytes = train.bytes - before.bytes
    validation.documents = train.documents - before.documents
    train.tokens, train.bytes = cut, before.bytes
    train.documents = before.documents + before.inside_document


class _Before(NamedTuple):
    """What lies before a cut: bytes, whole documents, and whether it falls inside a document."""

    bytes: int
    documents: int
    inside_document: bool


def _place_to_cut(train: SplitFile, tail: int, decode: Decode) -> tuple[int, _Before]:
    """The first place from ``tail`` tokens before the end on where no character is cut."""
    begin = size = documents = 0
    ended = True  # whether a document ends right before `begin`
    for stretch in train.stretches:
        if begin + stretch.tokens > train.tokens - tail:
            inside = max(0, train.tokens - tail - begin)
            if inside == 0:
                break
            ids = np.fromfile(
                train.path, train.dtype, stretch.tokens, offset=begin * train.dtype.itemsize
            ).tolist()
            if stretch.ends_document:
                ids.pop()
            found = _character_boundary(ids, inside, stretch.bytes, decode)
            if found is not None:
                inside, left_bytes = found
                return begin + inside, _Before(size + left_bytes, documents, True)
            tail = 0  # no boundary in here: cut where the piece ends
        begin += stretch.tokens
        size += stretch.bytes
        documents += stretch.ends_document
        ended = stretch.ends_document
        if tail == 0:
            break
    return begin, _Before(size, documents, not ended)


def _character_boundary(
    ids: list[int], start: int, size: int, decode: Decode
) -> tuple[int, int] | None:
    """(tokens, bytes) left of the first boundary from ``start`` on, if one is near."""
    whole = decode(ids)
    if utf8_length(whole) != size:
        return None
    for place in range(start, min(start + _STEPS_TO_CHARACTER, len(ids))):
        left = decode(ids[:place])
        if left + decode(ids[place:]) == whole:
            return place, utf8_length(left)
    return None


def _encoded(
    sizes: Mapping[Path, int], vocabulary: Vocabulary
) -> Iterator[tuple[Piece, list[int]]]:
    """Every piece with its token ids, batch by batch, under a progress bar of kilobytes read."""
    starts, total = {}, 0
    for path, size in sizes.items():
        starts[path] = total
        total += size
    with progress_bar("{task.fields[tokens]} tokens") as progress:
        task = progress.add_task("tokenizing, kB", total=-(-total // 1000), tokens="0")
        count = 0
        for batch in _batches(pieces(sizes)):
            for piece, ids in zip(
                batch, vocabulary.encode([piece.text for piece in batch]), strict=True
            ):
                if ids and max(ids) >= vocabulary.size:
                    raise KrakenError(
                        f"{piece.path}: the tokenizer gives token {max(ids)}, outside its "
                        f"vocabulary of {vocabulary.size}: repair its tokenizer.json"
                    )
                count += len(ids)
                yield piece, ids
            read = -(-(starts[batch[-1].path] + batch[-1].position) // 1000)
            progress.update(task, completed=read, tokens=f"{count:,}")
        progress.update(task, completed=-(-total // 1000))


def _batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    chars = 0
    for piece in stream:
        batch.append(piece)
        chars += len(piece.text)
        if chars >= _BATCH_CHARS or len(batch) == _BATCH_PIECES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _move_all(source: SplitFile, target: SplitFile) -> None:
    source.path.replace(target.path)
    target.documents, target.tokens, target.bytes = source.documents, source.tokens, source.bytes
    target.stretches = source.stretches
