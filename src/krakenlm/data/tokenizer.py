"""Which tokenizer does a name, a directory or a text give?"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from krakenlm.console import notes
from krakenlm.data.bad_text import OnBad, refuse
from krakenlm.data.child import Child, ChildGoneError
from krakenlm.data.hub import hub_answers
from krakenlm.data.text import check_files, pieces
from krakenlm.data.tokenizer_files import (
    END_OF_TEXT,
    byte_level,
    cannot_load,
    find_tokenizer,
    from_gpt2_files,
    no_end_of_text,
    vocabulary_of,
)
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SMALLEST_VOCABULARY = 257  # the 256 bytes and the end of text
TRAINING_BYTES = 32 << 20
# Characters that are learnt from before another process would have started.
_SOON_LEARNT = 1 << 19
# Upper case, runs of blanks, a composed accent, four-byte characters: what lossy tokenizers change.
_PROBE = "The  Quick\n\n\tbrown fox; d'\u00e9t\u00e9 \U0001f98a end \n"

Sample: TypeAlias = Callable[[int], Iterator[str]]
"""Given a limit in bytes, about so much text to learn from."""


def tokenizer_for(spec: str, texts: Sequence[Path] | Sample) -> "PreTrainedTokenizerFast":
    """The tokenizer that ``--tokenizer`` names: ``DIR``, ``train:VOCAB`` or a Hub name.

    Args:
        spec: as on the command line.
        texts: what ``train:VOCAB`` learns from: files, or a sample of other text.

    Raises:
        KrakenError: there is no such tokenizer, or it cannot be used to prepare tokens.
    """
    if not spec.startswith("train:"):
        return load_tokenizer(spec)
    try:
        vocab_size = int(spec.removeprefix("train:"))
    except ValueError:
        raise KrakenError(
            f"--tokenizer {spec}: the part after 'train:' is the number of vocabulary entries, "
            "as in train:8192"
        ) from None
    return train_tokenizer(texts, vocab_size)


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerFast":
    """Load a tokenizer from a directory or, by name, from the Hugging Face Hub.

    A directory holds ``tokenizer.json`` (a model, or the output of ``krakenlm prepare``), or only
    GPT-2's ``vocab.json`` and ``merges.txt``. No code that comes with a tokenizer is run.

    Raises:
        KrakenError: nothing usable is there, or the Hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return _from_directory(path)
    looks_like_path = (
        str(source).startswith(("/", ".", "~"))
        or str(source).count("/") > 1
        or path.suffix == ".json"
    )
    if path.exists() or looks_like_path:
        what = "is a file" if path.exists() else "does not exist"
        raise KrakenError(
            f"tokenizer {source} {what}: give a directory with tokenizer.json, "
            "or with vocab.json and merges.txt"
        )
    return _from_hub(str(source))


def train_tokenizer(texts: Sequence[Path] | Sample, vocab_size: int) -> "PreTrainedTokenizerFast":
    """Learn a byte-level BPE with ``<|endoftext|>`` as end, beginning and padding.

    It learns from at most 32 MiB of text (``TRAINING_BYTES``). Of files, each gives its beginning,
    in equal shares; what small files leave unused goes to the larger ones. Little text may give
    fewer entries than asked for.

    Raises:
        KrakenError: ``vocab_size`` cannot hold the 256 bytes and the end of text, or a bad file.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise KrakenError(
            f"a vocabulary of {vocab_size} entries is too small: byte-level BPE needs at least "
            f"{SMALLEST_VOCABULARY} (256 bytes and {END_OF_TEXT}), as in train:8192"
        )
    from tokenizers import models

    sample = sample_of_files(check_files(texts)) if isinstance(texts, Sequence) else texts
    with notes.status(f"learning a tokenizer of {vocab_size} entries"):
        return _wrap(_train(byte_level(models.BPE()), vocab_size, sample(TRAINING_BYTES)))


def sample_of_files(
    sizes: Mapping[Path, int], column: str = "text", on_bad: OnBad = refuse
) -> Sample:
    """The beginnings of the files, the small ones first so that they leave room to the others.

    Args:
        sizes: the files and their sizes on the disk.
        column: see ``krakenlm.data.text.pieces``.
        on_bad: likewise.
    """
    by_size = sorted(sizes, key=lambda path: (sizes[path], path))
    return lambda limit: _beginnings(by_size, limit, column, on_bad)


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """See ``vocabulary_of``."""
    return vocabulary_of(tokenizer.backend_tokenizer)


def plain_encoder(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """A copy of the tokenizer's engine, see ``encoder_of``."""
    return encoder_of(tokenizer.backend_tokenizer.to_str())


def encoder_of(engine: str) -> "Tokenizer":
    """An engine that encodes text as text, from what stands in a ``tokenizer.json``.

    Nothing is truncated, padded or added, and a special token spelt out in a document (an article
    on ``<|endoftext|>``) is encoded letter by letter instead of ending the document.
    """
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(engine)
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def encode(encoder: "Tokenizer", texts: list[str]) -> list[list[int]]:
    """The token ids of each text, encoded on all cores."""
    return [found.ids for found in encoder.encode_batch_fast(texts, add_special_tokens=False)]


def check_lossless(tokenizer: "PreTrainedTokenizerFast", name: str) -> None:
    """Refuse a tokenizer that does not give the text back.

    Raises:
        KrakenError: it drops or changes characters, so bits per byte would mean nothing.
    """
    encoder = plain_encoder(tokenizer)
    ids = encode(encoder, [_PROBE])[0]
    if encoder.decode(ids, skip_special_tokens=False) != _PROBE:
        raise KrakenError(
            f"tokenizer {name} does not give back the text it is given (case, blanks or "
            "characters are lost): use a byte-level one, such as gpt2 or train:8192"
        )


def _from_directory(directory: Path) -> "PreTrainedTokenizerFast":
    folder, has_json = find_tokenizer(directory)
    if not has_json:
        return _wrap(from_gpt2_files(folder))
    return _with_end_of_text(_auto(str(folder), local_files_only=True), str(folder))


def _from_hub(name: str) -> "PreTrainedTokenizerFast":
    try:
        return _with_end_of_text(_auto(name, local_files_only=True), name)  # from the cache
    except KrakenError as error:
        if not hub_answers():
            raise KrakenError(
                f"tokenizer {name}: no such directory, and the Hugging Face Hub cannot be "
                "reached: check the network, or pass a directory with tokenizer.json or with "
                "vocab.json and merges.txt, --tokenizer DIR"
            ) from error
    return _with_end_of_text(_auto(name, local_files_only=False), name)


def _auto(source: str, *, local_files_only: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, local_files_only=local_files_only, trust_remote_code=False
        )
    except KrakenError:
        raise
    except Exception as error:  # OSError, ValueError, and the Rust side's bare Exception
        raise cannot_load(source, error) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise KrakenError(f"tokenizer {source} has no tokenizer.json: save it as a fast tokenizer")
    return tokenizer


def _with_end_of_text(tokenizer: Any, name: str) -> "PreTrainedTokenizerFast":
    if tokenizer.eos_token_id is None and END_OF_TEXT in tokenizer.get_vocab():
        tokenizer.eos_token = END_OF_TEXT
    if tokenizer.eos_token_id is None:
        raise no_end_of_text(name)
    return tokenizer


def _train(tokenizer: "Tokenizer", vocab_size: int, texts: Iterator[str]) -> "Tokenizer":
    """Train on much text in a process of its own: in this one Ctrl-C would be heard at the end."""
    first = list(_up_to(texts, _SOON_LEARNT))
    rest = next(texts, None)
    if rest is None:
        tokenizer.train_from_iterator(first, _trainer(vocab_size))
        return tokenizer
    child = Child(_train_in_child, tokenizer.to_str(), vocab_size)
    try:
        for text in itertools.chain(first, [rest], texts):
            child.send(text)
        child.send(None)
        return type(tokenizer).from_str(child.receive())
    except ChildGoneError as error:
        raise KrakenError(
            "the process that learnt a tokenizer was killed, as happens when memory runs out: give "
            "it less text, or choose a tokenizer that is there with --tokenizer"
        ) from error
    finally:
        child.end()


def _train_in_child(pipe: Connection, engine: str, vocab_size: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(engine)
    tokenizer.train_from_iterator(iter(pipe.recv, None), _trainer(vocab_size))
    pipe.send(tokenizer.to_str())


def _trainer(vocab_size: int) -> Any:
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def _up_to(texts: Iterator[str], limit: int) -> Iterator[str]:
    """The next texts, until they have so many characters."""
    for text in texts:
        yield text
        limit -= len(text)
        if limit <= 0:
            return


def _wrap(tokenizer: "Tokenizer") -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _beginnings(
    paths: Sequence[Path], limit: int, column: str = "text", on_bad: OnBad = refuse
) -> Iterator[str]:
    """The first bytes of each file, ``limit`` in all, shared out over the files still to come."""
    for index, path in enumerate(paths):
        share = limit // (len(paths) - index)
        for piece in pieces([path], column, on_bad):
            taken = piece.text.encode()[:share]
            yield taken.decode(errors="ignore")  # a character cut in two is left out
            share -= len(taken)
            limit -= len(taken)
            if share <= 0:
                break
