"""A model folder's tokenizer by the ``tokenizers`` library alone, as Transformers would load it.

Importing Transformers takes longer than answering. What ``tokenizer_config.json`` and its older
companions change about ``tokenizer.json`` is little, and is done here the same way; a folder of
which that cannot be said is loaded by Transformers after all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from krakenlm.data.special_tokens import Settings, add_special_tokens, add_tokens, read_table
from krakenlm.data.tokenizer_files import (
    END_OF_TEXT,
    TOKENIZER_JSON,
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

_OURS = (None, "kraken")
"""Model types, in the ``config.json`` beside a tokenizer, that choose no class of their own."""

_AS_IN_THE_FILE = (None, "TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer")
# These classes build the engine anew, whatever the file says. Where Transformers 5 has saved such a
# folder, ``tokenizer.json`` is what it had built, and would build again.
_AS_SAVED = (
    *("BertTokenizer", "CohereTokenizer", "GemmaTokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer"),
    *("LlamaTokenizer", "Qwen2Tokenizer", "RobertaTokenizer", "T5Tokenizer", "XLMRobertaTokenizer"),
)
# Keys that lead to code or to another file.
_ELSEWHERE = {"auto_map", "fast_tokenizer_files"}
_CLEANED_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_EVEN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


class FolderTokenizer:
    """Texts to ids, and ids to text.

    Args:
        engine: what stands in ``tokenizer.json``, with all special tokens; it is changed.
        special_tokens: ``bos_token``, ``eos_token`` and the like, as far as there are any.
        cleans_up: whether decoding takes the blanks before punctuation away.
        splits_special_tokens: whether a special token that is spelt out in a text is just text.

    Attributes:
        vocabulary_size: what every id is below.
        special_tokens: see above.
        bos_token_id: of what a text begins with; None where there is no such token.
        eos_token_id: of what a text ends with; likewise.
        cleans_up: see above.
    """

    def __init__(
        self,
        engine: "Tokenizer",
        *,
        special_tokens: Mapping[str, str],
        cleans_up: bool = False,
        splits_special_tokens: bool = False,
    ) -> None:
        engine.no_truncation()
        engine.no_padding()
        engine.encode_special_tokens = splits_special_tokens
        self._engine = engine
        self.vocabulary_size = vocabulary_of(engine)
        self.special_tokens = special_tokens
        self.bos_token_id, self.eos_token_id = map(self._id_of, ("bos_token", "eos_token"))
        self.cleans_up = cleans_up

    def token_to_id(self, token: str) -> int | None:
        """The id of a token; None where there is none."""
        return self._engine.token_to_id(token)

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, whole, with nothing added."""
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        text: str = self._engine.decode(list(ids), skip_special_tokens=True)
        if self.cleans_up:
            for spaced in _CLEANED_UP:
                text = text.replace(spaced, spaced.strip())
        return text


class _RebuiltTokenizer(FolderTokenizer):
    """One that Transformers has loaded, and whose class may do all of it its own way."""

    def __init__(self, loaded: "PreTrainedTokenizerFast") -> None:
        super().__init__(
            loaded.backend_tokenizer,
            special_tokens=loaded.special_tokens_map,
            cleans_up=bool(loaded.clean_up_tokenization_spaces),
        )
        self._loaded = loaded

    def encode(self, text: str) -> list[int]:
        return list(self._loaded.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._loaded.decode(list(ids), skip_special_tokens=True))


def read_tokenizer(directory: Path) -> FolderTokenizer:
    """The tokenizer of a model, or of what ``krakenlm prepare`` made.

    Ids and texts are those of ``krakenlm.data.tokenizer.load_tokenizer``.

    Raises:
        KrakenError: there is none, a file of it is damaged, or it has no end of text.
    """
    folder, has_json = find_tokenizer(directory)
    if not has_json:
        engine = from_gpt2_files(folder)
        add_tokens(engine, [END_OF_TEXT])
        named = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
        return FolderTokenizer(engine, special_tokens=named)
    try:
        settings = read_table(folder / "tokenizer_config.json")
        if _is_read_here(settings, read_table(folder / "config.json")):
            return _from_json(folder, settings)
    except KrakenError:
        raise
    except Exception as error:  # the Rust side raises nothing more precise
        raise cannot_load(folder, error) from error
    from krakenlm.data.tokenizer import load_tokenizer

    return _RebuiltTokenizer(load_tokenizer(folder))


def _is_read_here(settings: Settings, model: Settings) -> bool:
    """Whether Transformers would take the engine from ``tokenizer.json`` as it stands.

    Args:
        settings: what stands in ``tokenizer_config.json``.
        model: what stands in the ``config.json`` beside it.
    """
    if settings.keys() & _ELSEWHERE or model.get("model_type") not in _OURS:
        return False
    name = settings.get("tokenizer_class") or model.get("tokenizer_class")
    if name in _AS_IN_THE_FILE:
        return True
    return str(name).removesuffix("Fast") in _AS_SAVED and settings.get("backend") == "tokenizers"


def _from_json(folder: Path, settings: Settings) -> FolderTokenizer:
    from tokenizers import Tokenizer, models

    engine = Tokenizer.from_file(str(folder / TOKENIZER_JSON))
    named = add_special_tokens(engine, folder, settings)
    named.setdefault("eos_token", END_OF_TEXT)
    if engine.token_to_id(named["eos_token"]) is None:
        raise no_end_of_text(folder)
    even_bpe = bool(settings.get(_EVEN_BPE))
    return FolderTokenizer(
        engine,
        special_tokens=named,
        cleans_up=bool(settings.get("clean_up_tokenization_spaces"))
        and (even_bpe or not isinstance(engine.model, models.BPE)),
        splits_special_tokens=bool(settings.get("split_special_tokens")),
    )
