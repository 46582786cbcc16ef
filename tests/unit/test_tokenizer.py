import json
import os
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from krakenlm.data import tokenizer as module
from krakenlm.data.tokenizer import (
    check_lossless,
    encode,
    load_tokenizer,
    plain_encoder,
    tokenizer_for,
    train_tokenizer,
)
from krakenlm.errors import KrakenError

GPT2 = Path(__file__).parents[2] / "../shared/data/gpt2"
TEXT = "The quick brown fox jumps over the lazy dog.\nWährend der Fuchs schläft: 🦊 été\n" * 20
AWKWARD = " \t\r\n\x00 naïve  \u00a0 e\u0301 日本語 🦊\u200d🦊 \ufffd <|endoftext|> Don't  "


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def round_trip(tokenizer, text):
    encoder = plain_encoder(tokenizer)
    return encoder.decode(encode(encoder, [text])[0], skip_special_tokens=False)


def test_trained_tokenizer_has_the_asked_size_and_gives_every_byte_back(text_file):
    tokenizer = train_tokenizer([text_file], 300)
    assert len(tokenizer) == 300
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<|endoftext|>"
    assert round_trip(tokenizer, AWKWARD) == AWKWARD
    assert len(encode(plain_encoder(tokenizer), [TEXT])[0]) < len(TEXT) / 2
    check_lossless(tokenizer, "trained")


def test_tokenizer_is_what_transformers_was_told(text_file):
    """It takes any keyword, and would pass over one that it renamed."""
    found = train_tokenizer([text_file], 300)
    assert found.clean_up_tokenization_spaces is False
    # What a model of ours takes: it refuses the ``token_type_ids`` that other tokenizers add.
    assert set(found("a text")) == {"input_ids", "attention_mask"}


def test_smallest_vocabulary_is_bytes_and_end_of_text(text_file):
    tokenizer = train_tokenizer([text_file], 257)
    assert len(tokenizer) == 257
    assert round_trip(tokenizer, AWKWARD) == AWKWARD


def test_training_is_reproducible(text_file):
    first, second = (train_tokenizer([text_file], 280) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_special_token_spelt_out_in_a_text_does_not_end_it(text_file):
    tokenizer = train_tokenizer([text_file], 280)
    ids = encode(plain_encoder(tokenizer), ["a <|endoftext|> b"])[0]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer("<|endoftext|>")["input_ids"] == [tokenizer.eos_token_id]  # unchanged itself


@pytest.mark.parametrize("folder", ["", "tokenizer"])
def test_saved_tokenizer_is_loaded_from_a_model_or_a_prepared_directory(
    tmp_path, text_file, folder
):
    tokenizer = train_tokenizer([text_file], 280)
    tokenizer.save_pretrained(tmp_path / "made" / folder)
    loaded = load_tokenizer(tmp_path / "made")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert round_trip(loaded, AWKWARD) == AWKWARD


def test_bare_tokenizer_json_gets_the_end_of_text(tmp_path, text_file):
    train_tokenizer([text_file], 280).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_token == "<|endoftext|>"


def test_bytes_for_training_are_bounded_and_spread_over_files(tmp_path):
    small, large = tmp_path / "small.txt", tmp_path / "large.jsonl"
    small.write_text("s" * 10)
    large.write_text("".join(json.dumps({"text": "é" * 15}) + "\n" for _ in range(100)))
    found = list(module._beginnings([small, large], 101))
    assert found[0] == "s" * 10
    assert "".join(found[1:]) == "é" * 45  # the 91 bytes left: 45 characters and a half


def test_bad_text_is_refused_while_learning_from_it(tmp_path, text_file):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{')
    with pytest.raises(KrakenError, match=r"bad\.jsonl:2: not valid JSON"):
        train_tokenizer([text_file, bad], 280)


def test_interrupt_while_learning_ends_the_thread_too(text_file, monkeypatch):
    def interrupted(*_):
        yield TEXT
        raise KeyboardInterrupt

    before = set(threading.enumerate())  # other libraries keep pools of their own
    monkeypatch.setattr(module, "_beginnings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer([text_file], 280)
    left = set(threading.enumerate()) - before
    assert not [each for each in left if "ThreadPool" in each.name]


def test_gpt2_files_get_gpt2_ids(tmp_path):
    if not GPT2.is_dir():
        pytest.skip(f"needs the GPT-2 vocabulary in {GPT2}")
    tokenizer = load_tokenizer(GPT2)
    assert len(tokenizer) == 50257
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 50256)
    ids = encode(plain_encoder(tokenizer), ["hello world"])[0]
    assert ids == [31373, 995]
    assert round_trip(tokenizer, AWKWARD) == AWKWARD
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_gpt2_layout_without_end_of_text_or_damaged_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(KrakenError, match=r"vocab\.json has no entry <\|endoftext\|>"):
        load_tokenizer(tmp_path)
    for merges in ("#version: 0.2\na b c\n", "a\n", "a b\n\n", "a x\n"):
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(KrakenError, match=r"vocab\.json and merges\.txt in .* are damaged"):
            load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(KrakenError, match=r"cannot read .*vocab\.json .*not valid JSON.*copy it"):
        load_tokenizer(tmp_path)


def test_byte_order_marks_of_tokenizer_files(tmp_path, text_file):
    """GPT-2's are read; what the library reads itself is refused with what to do."""
    trained = tokenizer_for("train:300", [text_file])
    trained.save_pretrained(tmp_path / "plain")
    trained.backend_tokenizer.model.save(str(tmp_path))
    ids = encode(plain_encoder(load_tokenizer(tmp_path)), [AWKWARD])
    assert ids == encode(plain_encoder(trained), [AWKWARD])
    files = [tmp_path / "vocab.json", tmp_path / "merges.txt"]
    for path in [*files, tmp_path / "plain" / "tokenizer.json"]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert encode(plain_encoder(load_tokenizer(tmp_path)), [AWKWARD]) == ids
    with pytest.raises(
        KrakenError, match=r"tokenizer\.json begins with a byte order.* tail -c \+4"
    ):
        load_tokenizer(tmp_path / "plain")


@pytest.mark.parametrize("size", [256, 0, -1])
def test_too_small_vocabulary_is_refused(text_file, size):
    with pytest.raises(KrakenError, match=rf"{size} entries is too small.* at least 257"):
        tokenizer_for(f"train:{size}", [text_file])


def test_training_size_must_be_a_number(text_file):
    with pytest.raises(KrakenError, match=r"train:many.*number of vocabulary entries"):
        tokenizer_for("train:many", [text_file])


@pytest.mark.parametrize("name", ["./gone", "/no/such/directory", "a/b/c"])
def test_paths_that_do_not_exist_are_never_looked_up_on_the_hub(monkeypatch, name):
    monkeypatch.setattr(module, "_from_hub", lambda name: pytest.fail("asked the Hub"))
    with pytest.raises(KrakenError, match=r"does not exist: give a directory with tokenizer\.json"):
        load_tokenizer(name)


def test_file_empty_directory_and_damaged_json_are_refused(tmp_path, text_file):
    with pytest.raises(KrakenError, match="is a file"):
        load_tokenizer(text_file)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(KrakenError, match=r"holds no tokenizer: it needs tokenizer\.json"):
        load_tokenizer(empty)
    (empty / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(KrakenError, match="cannot load tokenizer") as caught:
        load_tokenizer(empty)
    assert "\n" not in str(caught.value)


def test_tokenizer_without_end_of_text_is_refused(tmp_path):
    plain = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(KrakenError, match="no end-of-text token"):
        load_tokenizer(tmp_path)


def test_hub_out_of_reach_names_the_local_alternative(monkeypatch):
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    with pytest.raises(KrakenError, match=r"Hub cannot be reached.*--tokenizer DIR"):
        load_tokenizer("krakenlm-tests/no-such-tokenizer")


def test_hub_check_is_quick_when_nothing_listens(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not module.hub_answers()


def test_tokenizer_that_loses_text_is_refused():
    from transformers import PreTrainedTokenizerFast

    lossy = Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    lossy.normalizer = normalizers.Lowercase()
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(KrakenError, match="tokenizer uncased does not give back the text"):
        check_lossless(PreTrainedTokenizerFast(tokenizer_object=lossy), "uncased")


def test_another_process_learns_the_same_from_much_text(monkeypatch):
    here = train_tokenizer(much_text, 300)
    monkeypatch.setattr(module, "_SOON_LEARNT", 1)
    there = train_tokenizer(much_text, 300)
    assert there.backend_tokenizer.to_str() == here.backend_tokenizer.to_str()


def test_a_process_that_dies_while_it_learns_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "_SOON_LEARNT", 1)
    monkeypatch.setattr(module, "_train_in_child", learns_nothing)
    with pytest.raises(KrakenError, match=r"^the process that learnt a tokenizer was killed"):
        train_tokenizer(much_text, 300)


def much_text(_):
    return iter([TEXT, AWKWARD, TEXT])


def learns_nothing(*_):
    os._exit(1)
