"""The engine's own reading of a tokenizer gives the ids and the texts that Transformers gives."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from krakenlm.data import folder_tokenizer, tokenizer
from krakenlm.data.folder_tokenizer import FolderTokenizer, read_tokenizer
from krakenlm.data.tokenizer import load_tokenizer, train_tokenizer
from krakenlm.errors import KrakenError
from tokenizer_kinds import KINDS, byte_fallback, byte_level, metaspace, word_piece

GPT2 = Path(__file__).parents[2] / "../shared/data/gpt2"
PIECES = (
    *("the", "cat", " isn't", " it ?", "'s", " ' ", "n't .", " ", "  ", "\n\n", "\t", "\x00", "é"),
    *(
        "\u00a0",
        "e\u0301",
        "日本",
        "🦊\u200d🦊",
        "\ufffd",
        "<s>",
        "</s>",
        "<|endoftext|>",
        "<|im|>",
    ),
    *(
        "<pad>",
        "<image>",
        "<extra>",
        "<EXTRA>",
        "[X]",
        " [X] ",
        "[x]",
        "THE",
        "<0x41>",
        "▁the",
        "</w>",
    ),
)


def said(folder: Path, **changes: Any) -> None:
    """Change what ``tokenizer_config.json`` says; None takes a key out."""
    file = folder / "tokenizer_config.json"
    values = {**json.loads(file.read_text("utf-8")), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), "utf-8")


def written(folder: Path, name: str, values: object) -> None:
    (folder / name).write_text(json.dumps(values), "utf-8")


def saved(folder: Path, made: PreTrainedTokenizerFast | None = None, **changes: Any) -> None:
    (made or byte_level()).save_pretrained(folder)
    said(folder, **changes)


def as_class(name: str) -> Callable[[Path], None]:
    """A folder of this class: what Transformers makes of a file that is none of that class."""

    def make(folder: Path) -> None:
        fits = {
            "BertTokenizer": word_piece,
            "CLIPTokenizer": learned,
            **dict.fromkeys(("T5Tokenizer", "XLMRobertaTokenizer"), metaspace),
            **dict.fromkeys(("LlamaTokenizer", "GemmaTokenizer"), byte_fallback),
        }
        saved(folder / "hand-made", fits.get(name, byte_level)(), tokenizer_class=name)
        said(folder / "hand-made", backend=None)
        getattr(transformers, name).from_pretrained(folder / "hand-made").save_pretrained(folder)

    return make


def changed(change: Callable[[Tokenizer], None], **changes: Any) -> Callable[[Path], None]:
    """A folder whose engine is not as usual."""

    def make(folder: Path) -> None:
        saved(folder, **changes)
        engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
        change(engine)
        engine.save(str(folder / "tokenizer.json"))

    return make


def cut_and_filled(engine: Tokenizer) -> None:
    engine.enable_truncation(3)
    engine.enable_padding(pad_token="<pad>", pad_id=1, length=20)


def lower_cased(engine: Tokenizer) -> None:
    engine.normalizer = normalizers.Lowercase()
    engine.add_tokens([AddedToken("[X]", normalized=True), AddedToken("<im>", lstrip=True)])


def with_prefix(engine: Tokenizer) -> None:
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def older_files(folder: Path) -> None:
    """As Transformers 4 wrote them, with tokens that ``tokenizer.json`` does not have."""
    saved(folder, eos_token=None, bos_token=None, tokenizer_class="PreTrainedTokenizerFast")
    token = {"lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    tokens = {"eos_token": {"content": "<|im|>", **token}, "bos_token": "<s>", "pad_token": "<pad>"}
    tokens["image_token"] = {"content": "<image>", **token}
    tokens["extra_special_tokens"] = [{"content": "[X]", **token}]
    written(folder, "special_tokens_map.json", tokens)
    written(folder, "added_tokens.json", {"<extra>": 400, "<pad>": 300, "the cat": 350})
    engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine.normalizer = normalizers.Lowercase()
    engine.save(str(folder / "tokenizer.json"))


def named_in_a_map(folder: Path) -> None:
    saved(folder)
    written(
        folder,
        "special_tokens_map.json",
        {"extra_special_tokens": {"image_token": "<image>"}, "eos_token": "</s>"},
    )


def listed(folder: Path) -> None:
    """Added tokens by number, against the order of the file, with other properties than there."""
    rows = [("[X]", False, True), ("<extra>", True, False), ("</s>", False, False)]
    numbered = {
        str(300 - number): {
            "content": content,
            "special": special,
            "rstrip": right,
            "lstrip": not right,
            "normalized": False,
            "single_word": right,
        }
        for number, (content, special, right) in enumerate(rows)
    }
    saved(folder, added_tokens_decoder=numbered, unk_token="[X]")
    written(folder, "special_tokens_map.json", {"pad_token": "<pad>"})  # is not looked at


def bare(folder: Path) -> None:
    saved(folder)
    engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine.add_tokens(["<|endoftext|>"])
    for file in folder.iterdir():
        file.unlink()
    engine.save(str(folder / "tokenizer.json"))


def learned() -> PreTrainedTokenizerFast:
    text = "The quick brown fox, the cat. Fuchs: 🦊 été\n"
    return train_tokenizer(lambda _: iter([text] * 20), 300)


def trained(folder: Path) -> None:
    learned().save_pretrained(folder / "tokenizer")


def gpt2_layout(folder: Path) -> None:
    trained(folder)
    load_tokenizer(folder).backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer" / "tokenizer.json").unlink()


def beside_a_model(folder: Path) -> None:
    saved(folder)
    written(folder, "config.json", {"model_type": "kraken"})


TOKEN = {"__type": "AddedToken", "content": "<|im|>", "lstrip": True, "rstrip": True}
READ_HERE: dict[str, Callable[[Path], None]] = {
    **{kind: lambda folder, make=make: saved(folder, make()) for kind, make in KINDS.items()},
    **{name: as_class(name) for name in folder_tokenizer._AS_SAVED},
    "end in the settings alone": lambda f: saved(f, eos_token="<|im|>", pad_token="<pad>"),
    "spelt out": lambda f: saved(f, eos_token=TOKEN, image_token={**TOKEN, "content": "<image>"}),
    "no beginning": lambda f: saved(f, bos_token=None),
    "extra": lambda f: saved(f, extra_special_tokens=["[X]", {**TOKEN, "special": False}, "[X]"]),
    "additional": lambda f: saved(f, additional_special_tokens=["<extra>", "the"]),
    "named extra": lambda f: saved(f, extra_special_tokens={"image_token": "<image>"}),
    "the model's own": lambda f: saved(f, image_token="<image>", sep_token="[X]"),
    "own, listed": lambda f: saved(f, model_specific_special_tokens={"of_mine": "<image>"}),
    "special tokens are text": lambda f: saved(f, split_special_tokens=True),
    "cleaned up but BPE": lambda f: saved(f, clean_up_tokenization_spaces=True),
    "no class": lambda f: saved(f, tokenizer_class=None, backend=None),
    "Transformers 4": lambda f: saved(f, tokenizer_class="PreTrainedTokenizerFast", backend=None),
    "cut and filled": changed(cut_and_filled),
    "cut and filled without a token": changed(cut_and_filled, pad_token="[X]"),
    "lower case": changed(lower_cased),
    "prefix": changed(with_prefix, add_prefix_space=False),
    "older files": older_files,
    "named in a map": named_in_a_map,
    "listed": listed,
    "bare": bare,
    "trained": trained,
    "GPT-2's layout": gpt2_layout,
    "beside a model": beside_a_model,
}
READ_BY_TRANSFORMERS: dict[str, Callable[[Path], None]] = {
    "rebuilt": lambda f: saved(f, byte_fallback(), tokenizer_class="GPT2Tokenizer", backend=None),
    "its own decoding": as_class("CLIPTokenizer"),
    "unknown class": lambda f: saved(f, tokenizer_class="TokenizerOfNobody"),
    "another file": lambda f: saved(f, fast_tokenizer_files=["tokenizer.json"]),
    "another model": lambda f: (saved(f), written(f, "config.json", {"model_type": "gpt2"}))[0],
}


def assert_same(ours: FolderTokenizer, reference: PreTrainedTokenizerFast) -> None:
    vocabulary = reference.get_vocab()
    assert {token: ours.token_to_id(token) for token in vocabulary} == vocabulary
    assert ours.vocabulary_size == max(vocabulary.values()) + 1
    assert ours.bos_token_id == reference.bos_token_id
    chance = random.Random(1)
    numbers = sorted(vocabulary.values())
    special = [*reference.all_special_ids, *reference.added_tokens_decoder]
    for _ in range(200):
        text = "".join(chance.choices([*PIECES, *"tThe ca."], k=chance.randint(0, 12)))
        ids = reference.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids, text
        ids = [*ids, *chance.choices(numbers, k=5), *chance.choices(special, k=2), *ids]
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True), ids


@pytest.mark.parametrize("name", READ_HERE)
def test_ids_and_text_are_those_of_transformers_without_it(name, tmp_path, monkeypatch):
    READ_HERE[name](tmp_path)
    reference = load_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda _: pytest.fail("loaded by it"))
    assert_same(read_tokenizer(tmp_path), reference)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_what_transformers_may_build_anew_is_loaded_by_it(name, tmp_path):
    READ_BY_TRANSFORMERS[name](tmp_path)
    assert_same(read_tokenizer(tmp_path), load_tokenizer(tmp_path))


def test_gpt2_and_what_is_saved_of_it(tmp_path):
    if not GPT2.is_dir():
        pytest.skip(f"needs the GPT-2 vocabulary in {GPT2}")
    reference = load_tokenizer(GPT2)
    assert_same(read_tokenizer(GPT2), reference)
    reference.save_pretrained(tmp_path)
    assert_same(read_tokenizer(tmp_path), reference)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", '{"version": ', r"cannot load tokenizer .*tokenizer \(.*\): check it"),
        ("tokenizer.json", "\ufeff{}", r"tokenizer\.json begins with a byte order.* tail -c \+4"),
        ("tokenizer_config.json", "{", r"cannot read .*_config\.json .*not valid JSON.* copy it"),
        ("tokenizer_config.json", "[]", r"cannot load .*tokenizer_config\.json is no table of"),
        (
            "tokenizer_config.json",
            '{"eos_token": 5}',
            r"cannot load .*\(5 is no token\): ",
        ),
        ("tokenizer_config.json", '{"pad_token": {"a": 1}}', r"\{'a': 1\} is no token"),
        ("tokenizer_config.json", '{"extra_special_tokens": "5"}', "which is no list of tokens"),
        ("tokenizer_config.json", '{"extra_special_tokens": [5]}', "5 is no token"),
        ("tokenizer_config.json", '{"model_specific_special_tokens": []}', "cannot load tokenizer"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"a": {}}}', "cannot load tokenizer"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [5]}', "cannot load tokenizer"),
        ("special_tokens_map.json", "5", r"special_tokens_map\.json is no table of"),
        ("special_tokens_map.json", '{"pad_token": 5}', "5 is no token"),
        ("added_tokens.json", '{"a": {}, "b": 1}', "cannot load tokenizer"),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(name, content, message, tmp_path):
    trained(tmp_path)
    (tmp_path / "tokenizer" / name).write_text(content, "utf-8")
    with pytest.raises(KrakenError, match=message) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_refused(tmp_path):
    with pytest.raises(KrakenError, match=r"holds no tokenizer: it needs tokenizer\.json, or"):
        read_tokenizer(tmp_path)
    saved(tmp_path, eos_token=None)
    with pytest.raises(KrakenError, match=r"no end-of-text token.* set eos_token in its"):
        read_tokenizer(tmp_path)
