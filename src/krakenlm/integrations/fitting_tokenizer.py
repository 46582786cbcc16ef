"""Is a tokenizer the one that a model was trained with, as far as numbers can tell?"""

from typing import TYPE_CHECKING

from krakenlm.console import print_note
from krakenlm.data.tokenizer import load_tokenizer, vocabulary_size
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# GPT-2's 50257 entries are padded to 50304.
_PADDING = 128


def fitting_tokenizer(source: str, vocabulary: int) -> "PreTrainedTokenizerFast":
    """The tokenizer that somebody gives to a model, with a note where it is far too small.

    Args:
        source: a folder or Hub name.
        vocabulary: rows of the model's embedding.

    Raises:
        KrakenError: there is none, or it has ids outside the vocabulary.
    """
    tokenizer = load_tokenizer(source)
    size = check_fits(tokenizer, source, vocabulary)
    if vocabulary - size >= _PADDING:
        print_note(
            f"note: tokenizer {source} has ids up to {size - 1} and the checkpoint a vocabulary of "
            f"{vocabulary}, which is more than padding explains: check that the model was "
            "trained with this tokenizer"
        )
    return tokenizer


def check_fits(tokenizer: "PreTrainedTokenizerFast", source: str, vocabulary: int) -> int:
    """What every id is below, which the vocabulary must hold.

    Raises:
        KrakenError: it does not.
    """
    size = vocabulary_size(tokenizer)
    if size > vocabulary:
        raise KrakenError(
            f"tokenizer {source} has ids up to {size - 1} and the checkpoint a vocabulary of "
            f"{vocabulary}: give the tokenizer that the model was trained with"
        )
    return size
