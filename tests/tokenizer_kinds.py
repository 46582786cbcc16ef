"""Tokenizers of every kind, small, and Transformers' own: the reference for how they are read."""

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from krakenlm.data.folder_tokenizer import FolderTokenizer, read_tokenizer

SPECIAL = ["<s>", "</s>"]
WORDS = ["the", "cat", "n", "'", "t", "n't", "'s", "ve", "'ve", ".", ",", "?", "it", "'re"]


@cache
def read_back(tokenizer: PreTrainedTokenizerFast) -> FolderTokenizer:
    """The same as the engine reads it from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return read_tokenizer(Path(folder))


def wrapped(tokenizer: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token=None, **options
    )


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def byte_level(**options: object) -> PreTrainedTokenizerFast:
    """GPT-2's kind; emoji are four tokens, or three where a merge takes the first two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("ð", "Ł"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    tokenizer = Tokenizer(models.BPE(numbered([*alphabet, *map("".join, merges)]), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer, **options)


def byte_fallback(**options: object) -> PreTrainedTokenizerFast:
    """Llama's kind: bytes as tokens of their own, and the first blank is taken away."""
    pieces = ["▁", *WORDS, *(f"▁{word}" for word in WORDS), "▁▁"]
    vocabulary = numbered(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(tokenizer, **options)


def metaspace(**options: object) -> PreTrainedTokenizerFast:
    """SentencePiece's unigrams, which begin with a blank that is not theirs."""
    pieces = ["▁", *WORDS, *(f"▁{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((p, -1.0) for p in pieces)], 0))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return wrapped(tokenizer, **options)


def word_piece(**options: object) -> PreTrainedTokenizerFast:
    """BERT's kind."""
    vocabulary = numbered(["[UNK]", *WORDS, "##s", "##n't"])
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return wrapped(tokenizer, **options)


def words(**options: object) -> PreTrainedTokenizerFast:
    """No decoder at all, and tokens that are or end with blanks."""
    pieces = [*WORDS, " ", "' ", " '", "x ", ""]
    tokenizer = Tokenizer(models.WordLevel(numbered(["<unk>", *pieces]), unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return wrapped(tokenizer, **options)


def suffixed(**options: object) -> PreTrainedTokenizerFast:
    """GPT-1's kind: a mark at the end of each word."""
    pieces = [*WORDS, *(f"{word}</w>" for word in WORDS)]
    tokenizer = Tokenizer(models.BPE(numbered(pieces), [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return wrapped(tokenizer, **options)


FORCED = {
    "clean_up_tokenization_spaces": True,
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
}
KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level, cleaned up": lambda: byte_level(**FORCED),
    "byte-fallback": byte_fallback,
    "byte-fallback, cleaned up": lambda: byte_fallback(**FORCED),
    "metaspace": metaspace,
    "metaspace, cleaned up": lambda: metaspace(clean_up_tokenization_spaces=True),
    "word-piece": word_piece,
    "word-piece, cleaned up": lambda: word_piece(clean_up_tokenization_spaces=True),
    "words": words,
    "words, cleaned up": lambda: words(clean_up_tokenization_spaces=True),
    "suffixed": suffixed,
}
