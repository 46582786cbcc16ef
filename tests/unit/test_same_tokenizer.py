"""Tokens are taken for what they are only by the tokenizer that made them, whoever saved it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models

import tiny
from krakenlm.data.manifest import MANIFEST, Manifest
from krakenlm.data.same_tokenizer import ids_sha256
from krakenlm.data.tokenizer import load_tokenizer, train_tokenizer
from krakenlm.data.tokens import prepare
from krakenlm.errors import KrakenError
from krakenlm.eval.perplexity import perplexity

NFC = {"type": "NFC"}
ADDED = {
    "id": tiny.VOCABULARY, "content": "fox", "special": False,
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
}  # fmt: skip


def changed(engine: str, change: Callable[[dict[str, Any]], object]) -> str:
    """What stands in a ``tokenizer.json``, with a change."""
    state = json.loads(engine)
    change(state)
    return json.dumps(state, indent=1)


def change_file(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the ``tokenizer.json`` in a folder; its bytes differ in any case."""
    file = folder / "tokenizer.json"
    before = file.read_text()
    file.write_text(changed(before, change))
    assert file.read_text() != before


def pad(state: dict[str, Any]) -> None:
    state["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip


def truncate(state: dict[str, Any]) -> None:
    state["truncation"] = {
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip


def as_transformers_4_wrote_it(state: dict[str, Any]) -> None:
    """GPT-2's tokenizer of Transformers 4.40 differs in just this from the one of 5.24."""
    state["added_tokens"][0]["normalized"] = True
    state["post_processor"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True,
    }  # fmt: skip
    state["model"].update(continuing_subword_prefix="", end_of_word_suffix="")
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]


def without_newer_settings(state: dict[str, Any]) -> None:
    """Older files do not have them."""
    for key in ("byte_fallback", "ignore_merges"):
        del state["model"][key]
    del state["pre_tokenizer"]["use_regex"]


def turn_vocabulary_round(state: dict[str, Any]) -> None:
    """The same entries, written in another order."""
    state["model"]["vocab"] = dict(reversed(state["model"]["vocab"].items()))


def in_sequences(state: dict[str, Any]) -> None:
    inner = {"type": "Sequence", "pretokenizers": [state["pre_tokenizer"]]}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [inner]}
    state["normalizer"] = {"type": "Sequence", "normalizers": []}


def exchange(state: dict[str, Any]) -> None:
    """Two entries change their ids: every id fits, and means something else."""
    vocabulary = state["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]


def exchange_end_of_text(state: dict[str, Any]) -> None:
    """Of the special tokens, one that tokens do hold."""
    vocabulary, added = state["model"]["vocab"], state["added_tokens"]
    vocabulary["<|endoftext|>"], vocabulary["\u0100"] = vocabulary["\u0100"], 0
    added[0]["id"] = vocabulary["<|endoftext|>"]
    added.insert(0, {**added[0], "id": 0, "content": "\u0100"})


def add_special(state: dict[str, Any]) -> None:
    state["added_tokens"].append({**ADDED, "content": "<pad>", "special": True})


IRRELEVANT = [
    pad,
    truncate,
    as_transformers_4_wrote_it,
    without_newer_settings,
    turn_vocabulary_round,
    in_sequences,
    lambda state: state.update(decoder=None, version="1.0"),
    lambda state: state["pre_tokenizer"].update(trim_offsets=False),
]
RELEVANT = [
    (exchange, "vocabulary"),
    (exchange_end_of_text, "vocabulary"),
    (lambda state: state["model"]["merges"].reverse(), "merges"),
    (lambda state: state["model"]["merges"].pop(), "merges"),
    (lambda state: state["model"].update(dropout=0.1), "model"),
    (lambda state: state.update(normalizer=NFC), "normalizer"),
    (lambda state: state["pre_tokenizer"].update(add_prefix_space=True), "pre tokenizer"),
    (lambda state: state["pre_tokenizer"].update(use_regex=False), "pre tokenizer"),
    (lambda state: state["added_tokens"].append(ADDED), "added tokens and vocabulary"),
]


def names(cases: list[Any]) -> list[str]:
    changes = [case[0] if isinstance(case, tuple) else case for case in cases]
    return [f"{i}-{change.__name__}" for i, change in enumerate(changes)]


@pytest.fixture
def engine(tiny_data) -> str:
    return (tiny_data / "tokenizer" / "tokenizer.json").read_text()


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def as_of_version_2(data: Path, **tokenizer: str) -> None:
    """Leave out of the manifest what it did not always have; or put something else there."""
    value = json.loads((data / MANIFEST).read_text())
    del value["tokenizer"]["ids_sha256"]
    value["tokenizer"].update(tokenizer)
    (data / MANIFEST).write_text(json.dumps(value))


def measure(model: Path, data: Path, **options: bool) -> float:
    return perplexity(model, data, device="cpu", batch_size=64, **options).loss


@pytest.mark.parametrize("change", IRRELEVANT, ids=names(IRRELEVANT))
def test_what_has_no_part_in_ids_is_not_hashed(engine, change):
    assert ids_sha256(changed(engine, change)) == ids_sha256(engine)


@pytest.mark.parametrize("change", [case[0] for case in RELEVANT], ids=names(RELEVANT))
def test_what_decides_ids_is_hashed(engine, change):
    assert ids_sha256(changed(engine, change)) != ids_sha256(engine)


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip", "normalized"])
def test_how_an_added_token_is_looked_for_is_hashed_unless_it_never_is(engine, flag):
    def added(**settings: Any) -> str:
        token = {**ADDED, **settings}
        return ids_sha256(changed(engine, lambda state: state["added_tokens"].append(token)))

    other = {flag: not ADDED[flag]}
    assert added(**other) != added()
    assert added(special=True, **other) == added(special=True)


def test_scores_of_pieces_are_hashed():
    def of(score: float, unknown: int = 0) -> str:
        model = models.Unigram([("<unk>", 0.0), ("a", score), ("b", -2.0)], unk_id=unknown)
        return ids_sha256(Tokenizer(model).to_str())

    assert of(-1.5) == of(-1.5)
    assert len({of(-1.5), of(-1.25), of(-1.5, unknown=1)}) == 3


def test_the_manifest_holds_the_hash(tiny_data, engine):
    assert Manifest.load(tiny_data).tokenizer.ids_sha256 == ids_sha256(engine)


@pytest.mark.parametrize("manifest", ["of today", "of version 2", "with another hash"])
@pytest.mark.parametrize(("change", "part"), RELEVANT, ids=names(RELEVANT))
def test_tokens_of_another_tokenizer_are_refused(own_model, data, change, part, manifest):
    if manifest != "of today":
        as_of_version_2(data, **({} if "2" in manifest else {"ids_sha256": "of other making"}))
    change_file(own_model, change)
    with pytest.raises(KrakenError) as refusal:
        measure(own_model, data)
    message = str(refusal.value)
    assert f"{data} was prepared with another tokenizer (train:{tiny.VOCABULARY}, sha" in message
    assert f"than {own_model} has: not the same {part}: prepare" in message
    assert "--other-tokenizer" in message


@pytest.mark.parametrize("manifest", ["of today", "of version 2", "with another hash"])
@pytest.mark.parametrize("change", [*IRRELEVANT, add_special], ids=names([*IRRELEVANT, pad]))
def test_the_same_tokenizer_saved_otherwise_is_none_other(own_model, data, capfd, change, manifest):
    if manifest != "of today":
        as_of_version_2(data, **({} if "2" in manifest else {"ids_sha256": "of other making"}))
    change_file(own_model, change)
    measure(own_model, data)
    assert "note:" not in capfd.readouterr().err


def test_saved_again_with_a_template_and_a_padding_token_it_is_none_other(own_model, data, capfd):
    tokenizer = load_tokenizer(own_model)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", special=True)})
    before = (own_model / "tokenizer.json").read_bytes()
    tokenizer.save_pretrained(own_model)
    assert (own_model / "tokenizer.json").read_bytes() != before
    measure(own_model, data)
    assert "note:" not in capfd.readouterr().err


def test_without_the_tokenizer_in_the_data_the_manifest_tells(own_model, data, capfd):
    shutil.rmtree(data / "tokenizer")
    change_file(own_model, pad)
    measure(own_model, data)
    assert "note:" not in capfd.readouterr().err
    change_file(own_model, exchange)
    with pytest.raises(KrakenError, match=r"another tokenizer .* not the same sha256"):
        measure(own_model, data)


@pytest.mark.parametrize("left", ["nothing", "another"])
def test_what_cannot_be_told_is_said(own_model, data, capfd, left):
    as_of_version_2(data)
    if left == "nothing":
        shutil.rmtree(data / "tokenizer")
    else:
        change_file(data / "tokenizer", exchange)
    measure(own_model, data)
    assert "note:" not in capfd.readouterr().err  # the very file that the manifest describes
    change_file(own_model, pad)
    measure(own_model, data)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(said) == 1 and f"whether {data} was prepared for {own_model} cannot" in said[0]


def test_a_model_without_a_tokenizer_is_measured_with_a_note(own_model, data, capfd):
    expected = measure(own_model, data)
    (own_model / "tokenizer.json").unlink()
    assert measure(own_model, data) == expected
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(said) == 1 and f"{own_model} holds no tokenizer" in said[0]


def test_gpt2s_two_files_are_compared_too(own_model, data, capfd, engine):
    model = json.loads(engine)["model"]
    (own_model / "tokenizer.json").unlink()
    (own_model / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = own_model / "merges.txt"
    merges.write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in model["merges"]))
    measure(own_model, data)
    assert "note:" not in capfd.readouterr().err
    merges.write_text("#version: 0.2\n")
    with pytest.raises(KrakenError, match="not the same merges"):
        measure(own_model, data)


def test_the_part_that_a_class_builds_anew_is_taken_from_the_file_or_from_the_class(
    own_model, data, tmp_path, capfd
):
    """Transformers makes GPT-2's parts itself: neither reading is another tokenizer's."""
    config = json.loads((own_model / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "GPT2Tokenizer"
    (own_model / "tokenizer_config.json").write_text(json.dumps(config))
    change_file(own_model, lambda state: state.update(normalizer=NFC))
    assert load_tokenizer(own_model).backend_tokenizer.normalizer is None
    measure(own_model, data)  # as the class builds it
    (tmp_path / "text.txt").write_text(tiny.text(100))
    other = tmp_path / "tokenizer"
    train_tokenizer([tmp_path / "text.txt"], 280).save_pretrained(other)
    change_file(other, lambda state: state.update(normalizer=NFC))
    prepare([tmp_path / "text.txt"], str(other), tmp_path / "other", validation_fraction=0.3)
    shutil.copy(other / "tokenizer.json", own_model)
    change_file(own_model, pad)
    measure(own_model, tmp_path / "other")  # as the file says
    assert "note:" not in capfd.readouterr().err


def test_a_text_is_encoded_by_the_models_own_tokenizer(own_model, tmp_path, capfd):
    change_file(own_model, exchange)
    (tmp_path / "text.txt").write_text(tiny.text(40))
    measure(own_model, tmp_path / "text.txt")
    assert "note:" not in capfd.readouterr().err


def test_perplexity_goes_on_for_who_insists(own_model, data, capfd, own_signals):
    expected = measure(own_model, data)
    change_file(own_model, exchange)
    arguments = ("perplexity", own_model, data, "--device", "cpu")
    refused = tiny.call(capfd, *arguments)
    assert refused.code == 2 and refused.out == "" and len(refused.complaints) == 1
    insisted = tiny.call(capfd, *arguments, "--other-tokenizer")
    assert insisted.code == 0 and f"{expected:.4f}" in insisted.out
    assert insisted.err.count("prepared with another tokenizer") == 1


@pytest.fixture
def train(data, tmp_path, capfd, own_signals):
    path = tmp_path / "recipe.toml"
    path.write_text(tiny.recipe_text(data, tmp_path / "run", steps=1, eval_batches=1))
    return lambda *options: tiny.call(capfd, "train", path, *options)


@pytest.mark.parametrize("manifest", ["of today", "of version 2"])
def test_training_refuses_data_whose_tokenizer_was_exchanged(train, data, tmp_path, manifest):
    """The model would get a tokenizer that reads its tokens as other text."""
    if manifest == "of version 2":
        as_of_version_2(data)
    change_file(data / "tokenizer", exchange)
    refused = train()
    assert refused.code == 2 and len(refused.complaints) == 1
    assert f"{data / 'tokenizer'} is not the tokenizer that made the tokens of" in refused.err
    assert f"(train:{tiny.VOCABULARY}, sha256 " in refused.err
    assert not (tmp_path / "run").exists()
    insisted = train("--other-tokenizer")
    assert insisted.code == 0 and (tmp_path / "run" / "model" / "tokenizer.json").is_file()
    assert "the model gets it nevertheless" in insisted.err


def test_training_takes_data_whose_tokenizer_was_saved_again(train, data):
    change_file(data / "tokenizer", pad)
    done = train()
    assert done.code == 0 and "not the tokenizer" not in done.err


def test_training_refuses_data_without_a_tokenizer_before_it_takes_a_folder(train, data, tmp_path):
    shutil.rmtree(data / "tokenizer")
    refused = train()
    assert refused.code == 2 and not (tmp_path / "run").exists()
