"""How far did an interrupted preparation come?

``progress.json`` says it, beside the shards that are finished. It is written whenever a shard is,
after the tokens are on the disk, and removed when the directory is whole.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from krakenlm.data.manifest import Shard
from krakenlm.data.tail import Cut, Stretch, Tail
from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.strict import read_if_there

PROGRESS = "progress.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What was asked for: only the same again may go on."""

    sources: tuple[str, ...]
    tokenizer: str
    validation_fraction: float
    shard_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitProgress:
    """What stands on the disk of one split.

    Attributes:
        shards: the finished ones.
        open_tokens: how many tokens of the next one.
        open_sha256: of these.
    """

    shards: tuple[Shard, ...]
    open_tokens: int
    open_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TailProgress:
    """A ``Tail`` in plain values; without stretches once it is known not to be needed."""

    tokens: int
    bytes: int
    documents: int
    inside_document: bool
    later: tuple[Stretch, ...]

    @classmethod
    def of(cls, tail: Tail) -> "TailProgress":
        """What a tail holds."""
        return cls(**tail.before._asdict(), later=tuple(tail.later))

    def as_tail(self, fraction: float) -> Tail:
        """The tail again."""
        before = Cut(self.tokens, self.bytes, self.documents, self.inside_document)
        return Tail(fraction, before, self.later)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A place in the text, and what stands on the disk of the text before it.

    Attributes:
        command: what was asked for.
        tokenizer_sha256: of the saved ``tokenizer.json``.
        vocab_size: every token is below it.
        eos_id: the token that ends a document.
        pieces: how many pieces of text became tokens.
        text_hash: of these pieces; other text must not be gone on with.
        train: the split's files.
        validation: the split's files.
        tail: what is needed should the documents stay too few.
    """

    format_version: int = 1
    command: Command
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int
    pieces: int
    text_hash: str
    train: SplitProgress
    validation: SplitProgress
    tail: TailProgress

    def save(self, folder: Path) -> None:
        """Write ``progress.json``, whole or not at all."""
        write_json(folder / PROGRESS, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path, command: Command) -> "Progress | None":
        """What an interrupted run of the same command left in the folder; None where none did.

        Raises:
            KrakenError: it was another command, or ``progress.json`` is damaged.
        """
        found = read_if_there(cls, folder / PROGRESS, f"remove {folder} to begin anew")
        if found is None:
            return None
        other = [
            field.name.replace("_", " ")
            for field in dataclasses.fields(Command)
            if getattr(command, field.name) != getattr(found.command, field.name)
        ]
        if other:
            raise KrakenError(
                f"{folder} holds an interrupted preparation with other {' and '.join(other)}: "
                "give the command that began it, or remove the folder to begin anew"
            )
        return found
