"""Shards, processes and interruptions change no byte of what is prepared."""

import dataclasses
import errno
import json

import numpy as np
import pytest

import dying
import tiny
from krakenlm.data import preparation, text, tokens, workers, writer
from krakenlm.data.manifest import Manifest
from krakenlm.data.shards import ShardedTokens, chunks, largest
from krakenlm.data.text import pieces
from krakenlm.data.tokens import open_split, prepare, verify
from krakenlm.errors import KrakenError
from krakenlm.files import resumable_directory
from krakenlm.train.run_folder import _identity
from krakenlm.train.trainer import Windows


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in tiny.DOCUMENTS))
    return path


@pytest.fixture
def make(tmp_path, source, tokenizer, monkeypatch):
    """Prepares ``source`` in small shards and batches."""
    monkeypatch.setattr(workers, "_BATCH_PIECES", 10)

    def make(name="out", texts=None, **options):
        options = {"validation_fraction": 0.1, "shard_tokens": 500, **options}
        return prepare([source] if texts is None else texts, tokenizer, tmp_path / name, **options)

    return make


def stop_at(monkeypatch, call, error):
    """Let writing tokens fail once; returns a function that ends this."""
    append, count = writer.SplitWriter.append, iter(range(1, 100_000))

    def append_or_fail(self, ids):
        if next(count) == call:
            raise error
        append(self, ids)

    monkeypatch.setattr(writer.SplitWriter, "append", append_or_fail)
    return lambda: monkeypatch.setattr(writer.SplitWriter, "append", append)


def interrupted(monkeypatch, make, call=150, **options):
    again = stop_at(monkeypatch, call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make(**options)
    again()


def flip(path, offset=0):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


# --- shards ------------------------------------------------------------------------------------


def test_shards_are_one_sequence_with_the_tokens_of_one_file(tmp_path, make):
    one, many = make("one", shard_tokens=10**6), make("many")
    for split in tokens.SPLITS:
        whole, parts = (open_split(tmp_path / name, split) for name in ("one", "many"))
        assert len(many.split(split).shards) > 1 == len(one.split(split).shards)
        assert {shard.tokens for shard in parts.info.shards[:-1]} == {500}
        assert len(parts.tokens) == len(whole.tokens) == parts.info.tokens
        assert np.array_equal(parts.tokens[:], whole.tokens)
        assert (parts.info.documents, parts.info.bytes) == (whole.info.documents, whole.info.bytes)
        assert parts.tokens.dtype == whole.tokens.dtype
        assert largest(parts.tokens) == int(whole.tokens.max())


def test_any_slice_of_shards_is_that_of_the_whole(monkeypatch):
    whole = np.arange(20, dtype=np.uint16)
    tokens = ShardedTokens([whole[:7], whole[7:8], whole[8:15], whole[15:]])
    for start in range(-3, 23):
        for stop in range(-3, 23):
            assert np.array_equal(tokens[start:stop], whole[start:stop])
    assert np.shares_memory(tokens[8:15], whole)
    monkeypatch.setattr("krakenlm.data.shards._CHUNK", 6)
    assert [each.tolist() for each in chunks(tokens, 3, 16)] == [
        [*range(3, 9)],
        [*range(9, 15)],
        [15],
    ]
    with pytest.raises(ValueError, match="step"):
        tokens[::2]


def test_training_windows_span_shards(tmp_path, make):
    make("one", shard_tokens=10**6)
    make("many")
    windows = [Windows(open_split(tmp_path / name, "train").tokens, 64) for name in ("one", "many")]
    assert len(windows[0]) == len(windows[1]) > 500 // 64
    for index in range(len(windows[0])):
        pair = [each[index]["input_ids"] for each in windows]
        assert pair[0].equal(pair[1])


def test_manifest_of_version_1_is_read(tmp_path, make):
    manifest = make(shard_tokens=10**6)
    old = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name, split in old["splits"].items():
        (shard,) = split.pop("shards")
        split["sha256"] = shard["sha256"]
        (tmp_path / "out" / shard["file"]).rename(tmp_path / "out" / f"{name}.bin")
    old["format_version"] = 1
    old["sources"] = [{key: each[key] for key in ("path", "bytes")} for each in old["sources"]]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(old))
    read = Manifest.load(tmp_path / "out")
    assert read.splits.train.shards[0].file == "train.bin"
    assert _identity(read) == _identity(manifest)  # runs on these tokens go on
    opened = open_split(tmp_path / "out", "train", verify=True)
    assert len(opened.tokens) == read.splits.train.tokens
    make(shard_tokens=10**6, replace=True)
    old["splits"]["train"]["sha256"] = 1
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(KrakenError, match=r"shards\[0\]\.sha256=1: needs a value of type str"):
        Manifest.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("", {}),
        ("split train[:1%], column text", {"split": "train[:1%]", "column": "text"}),
        (
            "configuration a, b, split train, column content",
            {"config": "a, b", "split": "train", "column": "content"},
        ),
    ],
)
def test_manifest_of_version_2_is_read(tmp_path, make, part, said):
    manifest = make()
    path = tmp_path / "out" / "manifest.json"
    old = json.loads(path.read_text())
    old["format_version"] = 2
    (source,) = old["sources"]
    old["sources"] = [{"path": source["path"], "bytes": source["bytes"], "part": part}]
    path.write_text(json.dumps(old))
    read = Manifest.load(tmp_path / "out")
    assert read.sources == (dataclasses.replace(manifest.sources[0], **said),)
    assert read.skipped == 0
    assert _identity(read) == _identity(manifest)
    old["sources"][0]["part"] = "something else"
    path.write_text(json.dumps(old))
    with pytest.raises(KrakenError, match=r"unknown key 'part' in sources\[0\]"):
        Manifest.load(tmp_path / "out")


def test_identity_of_tokens_is_that_of_all_shards(tmp_path, make):
    before = _identity(make())
    other = [*tiny.DOCUMENTS[:-1], "another last document\n"]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in other))
    after = _identity(make("other", texts=[tmp_path / "b.jsonl"]))
    assert before["tokenizer"] == after["tokenizer"]
    assert (before["train"], before["validation"]) != (after["train"], after["validation"])


def test_verify_names_every_damaged_file(tmp_path, make):
    manifest = make()
    assert verify(tmp_path / "out") == manifest
    flip(tmp_path / "out" / "train-00001.bin", 7)
    (tmp_path / "out" / "validation-00000.bin").unlink()
    flip(tmp_path / "out" / "tokenizer" / "tokenizer.json", 9)
    with pytest.raises(KrakenError) as caught:
        verify(tmp_path / "out")
    said = str(caught.value)
    assert "train-00001.bin, validation-00000.bin, tokenizer/tokenizer.json: copy again" in said
    assert "train-00000.bin" not in said
    with pytest.raises(KrakenError, match=r"train-00001\.bin is damaged.*copy it again"):
        open_split(tmp_path / "out", "train")
    open_split(tmp_path / "out", "train", verify=False)


# --- processes ---------------------------------------------------------------------------------


def test_processes_give_the_bytes_of_one(tmp_path, make, monkeypatch):
    make("one", workers=1)
    monkeypatch.setattr(workers, "_encode", lambda *_: pytest.fail("encoded in this process"))
    monkeypatch.setattr(workers, "_WORTH_PROCESSES", 2)
    make("two", workers=2)
    assert tiny.snapshot(tmp_path / "one") == tiny.snapshot(tmp_path / "two")


def test_processes_that_die_are_one_line(source, monkeypatch):
    monkeypatch.setattr(workers, "_BATCH_PIECES", 10)
    monkeypatch.setattr(workers, "_WORTH_PROCESSES", 2)
    broken = workers.Encoding(engine="{", eos_id=0)
    with pytest.raises(KrakenError, match=r"a process that tokenized was killed.*fewer --workers"):
        list(workers.encoded(pieces([source]), broken, 2))


def test_a_process_that_dies_within_its_answer_is_not_waited_for(source, monkeypatch):
    """What has come of it so far says how much is still to come, and never will."""
    monkeypatch.setattr(workers, "_BATCH_PIECES", 10)
    monkeypatch.setattr(workers, "_WORTH_PROCESSES", 2)
    monkeypatch.setattr(workers, "_encode_for", dying.answers_by_half)
    with pytest.raises(KrakenError, match=r"a process that tokenized was killed"):
        list(workers.encoded(pieces([source]), workers.Encoding(engine="", eos_id=0), 2))


@pytest.mark.parametrize(("option", "message"), [("shard_tokens", "a shard"), ("workers", "worke")])
def test_impossible_numbers_are_refused(make, option, message):
    with pytest.raises(KrakenError, match=f"^0 .*{message}.* cannot work: choose 1 or more"):
        make(**{option: 0})


# --- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", [45, 150, 299])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_preparation_goes_on_to_the_same_bytes(
    tmp_path, make, monkeypatch, capsys, call, error
):
    make("whole")
    again = stop_at(monkeypatch, call, error)
    with pytest.raises((KeyboardInterrupt, KrakenError)):
        make()
    assert not (tmp_path / "out").exists()
    assert "out.unfinished keeps the finished shards" in " ".join(capsys.readouterr().err.split())
    finished = (tmp_path / "out.unfinished" / "train-00000.bin").stat().st_mtime_ns
    again()
    encoded = []
    encode = workers.encode
    monkeypatch.setattr(workers, "encode", lambda e, t: (encoded.extend(t), encode(e, t))[1])
    make()
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")
    assert not (tmp_path / "out.unfinished").exists()
    assert 0 < len(encoded) <= len(tiny.DOCUMENTS) - 20  # the rest only
    assert (tmp_path / "out" / "train-00000.bin").stat().st_mtime_ns == finished


def test_interrupted_twice_and_what_was_written_behind_is_cut_off(tmp_path, make, monkeypatch):
    make("whole")
    interrupted(monkeypatch, make, 100)
    interrupted(monkeypatch, make, 120)
    left = tmp_path / "out.unfinished"
    for path in sorted(left.glob("*.bin")):
        if path.stat().st_size < 1000:  # of 500 tokens
            path.write_bytes(path.read_bytes() + b"more")
    (left / "train-00077.bin").write_bytes(b"written behind")
    make()
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")


def test_killed_before_the_first_shard_begins_anew(tmp_path, make):
    make("whole")
    left = tmp_path / "out.unfinished"
    (left / "tokenizer").mkdir(parents=True)
    for name in ("train-00000.bin", ".progress.json-partial-x"):
        (left / name).write_text("half")
    make()
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")


def test_a_learned_tokenizer_is_not_learned_again(tmp_path, source, monkeypatch):
    monkeypatch.setattr(workers, "_BATCH_PIECES", 10)
    options = {"validation_fraction": 0.1, "shard_tokens": 500}
    prepare([source], "train:300", tmp_path / "whole", **options)
    interrupted(monkeypatch, lambda: prepare([source], "train:300", tmp_path / "out", **options))
    monkeypatch.setattr(tokens, "tokenizer_for", lambda *_: pytest.fail("learned again"))
    prepare([source], "train:300", tmp_path / "out", **options)
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")


@pytest.mark.parametrize("lucky", ["train", "validation"])
def test_one_long_document_goes_on_too(tmp_path, make, monkeypatch, lucky):
    monkeypatch.setattr(text, "PIECE_CHARS", 60)
    monkeypatch.setattr(preparation, "belongs_to_validation", lambda *_: lucky == "validation")
    path = tmp_path / "a.txt"
    path.write_text("🦊日本語été " * 400)
    manifest = make("whole", texts=[path], validation_fraction=0.3)
    assert manifest.validation_from == "tail"
    for split in tokens.SPLITS:
        info = open_split(tmp_path / "whole", split, verify=True).info
        assert len(info.shards) > 1 and info.documents == 1
    assert verify(tmp_path / "whole").splits.train.bytes > 2 * manifest.splits.validation.bytes
    interrupted(monkeypatch, make, 30, texts=[path], validation_fraction=0.3)
    make(texts=[path], validation_fraction=0.3)
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")


def test_a_damaged_shard_of_an_interrupted_preparation_is_named(tmp_path, make, monkeypatch):
    interrupted(monkeypatch, make)
    left = tmp_path / "out.unfinished"
    before = tiny.snapshot(left)
    train = json.loads(before["progress.json"])["train"]
    assert len(train["shards"]) > 2 and train["open_tokens"] > 0
    writing = left / f"train-{len(train['shards']):05d}.bin"
    for path in (left / "train-00001.bin", writing, left / "tokenizer" / "tokenizer.json"):
        flip(path)
        with pytest.raises(KrakenError, match=rf"{path.name} is damaged.*remove .* begin anew"):
            make()
        flip(path)
    (left / "train-00000.bin").unlink()
    with pytest.raises(KrakenError, match=r"train-00000\.bin is damaged"):
        make()
    (left / "train-00000.bin").write_bytes(before["train-00000.bin"])
    (left / "progress.json").write_text("{")
    with pytest.raises(KrakenError, match=r"cannot read .*progress\.json.*begin anew"):
        make()
    (left / "progress.json").write_bytes(before["progress.json"])
    make()
    assert verify(tmp_path / "out")


def test_only_the_same_command_on_the_same_text_goes_on(tmp_path, make, source, monkeypatch):
    interrupted(monkeypatch, make)
    before = tiny.snapshot(tmp_path)
    for change, named in (
        ({"shard_tokens": 400}, "other shard tokens"),
        ({"validation_fraction": 0.2, "shard_tokens": 9}, "other validation fraction and shard"),
        ({"texts": [source, source.with_name("b.txt")]}, "other sources"),
    ):
        source.with_name("b.txt").write_text("b")
        with pytest.raises(KrakenError, match=f"interrupted preparation with {named}"):
            make(**change)
        source.with_name("b.txt").unlink()
    whole = source.read_text()
    for changed in (whole.replace("Document 3:", "Document x:"), whole[: len(whole) // 9]):
        source.write_text(changed[: changed.rindex("\n") + 1])
        with pytest.raises(KrakenError, match=r"the text is another than .* was begun with"):
            make()
    source.write_text(whole)
    assert tiny.snapshot(tmp_path) == before


def test_text_added_at_the_end_is_taken_along(tmp_path, make, source, monkeypatch):
    interrupted(monkeypatch, make)
    with source.open("a") as file:
        file.write(json.dumps({"text": "added later\n"}) + "\n")
    make()
    make("whole")
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")


def test_a_byte_order_mark_changes_neither_tokens_nor_what_goes_on(
    tmp_path, make, source, monkeypatch
):
    make("whole")
    interrupted(monkeypatch, make)
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    make()
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")


# --- bad text ----------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path, source):
    """The text of ``source`` in two files, with 3 and 9 bad lines among them."""
    lines = source.read_bytes().splitlines(keepends=True)
    halves = {"b": (lines[:150], (10, 71, 132)), "c": (lines[150:], range(10, 100, 10))}
    for name, (half, places) in halves.items():
        for place in places:
            half.insert(place, b'{"text": "cut\n')
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(half))
    return [tmp_path / "b.jsonl", tmp_path / "c.jsonl"]


def token_files(folder):
    found = tiny.snapshot(folder)
    return {name: data for name, data in found.items() if name != "manifest.json"}


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_lines_are_left_out_counted_and_named(
    tmp_path, make, spoilt, monkeypatch, capsys, processes
):
    make("whole")
    monkeypatch.setattr(workers, "_WORTH_PROCESSES", 2)
    manifest = make(texts=spoilt, skip_bad=True, workers=processes)
    assert token_files(tmp_path / "out") == token_files(tmp_path / "whole")
    assert [source.skipped for source in manifest.sources] == [3, 9]
    assert Manifest.load(tmp_path / "out").skipped == manifest.skipped == 12
    said = capsys.readouterr().err.split("note: ")[-1].splitlines()
    assert said[0] == "12 bad lines left out, counted in manifest.json; the first 10:"
    assert len(said) == 11
    for line, (name, number) in zip(said[1:4], (("b", 11), ("b", 72), ("b", 133)), strict=True):
        assert line.startswith(f"  {tmp_path}/{name}.jsonl:{number}: not valid JSON")


@pytest.mark.parametrize("call", [45, 150, 299])
def test_counts_of_what_is_left_out_survive_an_interruption(
    tmp_path, make, spoilt, monkeypatch, capsys, call
):
    options = {"texts": spoilt, "skip_bad": True}
    whole = make("whole", **options)
    interrupted(monkeypatch, make, call, **options)
    capsys.readouterr()
    assert make(**options) == whole
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(tmp_path / "whole")
    assert "12 bad lines left out" in capsys.readouterr().err


def test_what_stopped_at_a_bad_line_goes_on_without_it(tmp_path, make, spoilt, monkeypatch):
    make("whole", texts=spoilt, skip_bad=True)
    lines = spoilt[0].read_bytes().splitlines(keepends=True)
    spoilt[0].write_bytes(b"".join(line for line in lines if b'"cut' not in line))
    with pytest.raises(KrakenError, match=r"c\.jsonl:11: not valid JSON"):
        make(texts=spoilt)
    finished = (tmp_path / "out.unfinished" / "train-00000.bin").stat().st_mtime_ns
    manifest = make(texts=spoilt, skip_bad=True)
    assert (tmp_path / "out" / "train-00000.bin").stat().st_mtime_ns == finished
    assert token_files(tmp_path / "out") == token_files(tmp_path / "whole")
    assert [source.skipped for source in manifest.sources] == [0, 9]


def test_a_tokenizer_is_learned_without_what_is_bad(tmp_path, source, spoilt):
    prepare([source], "train:300", tmp_path / "whole")
    prepare(spoilt, "train:300", tmp_path / "out", skip_bad=True)
    names = [tmp_path / name / "tokenizer" / "tokenizer.json" for name in ("whole", "out")]
    sizes = [len(json.loads(path.read_text())["model"]["vocab"]) for path in names]
    assert sizes == [300, 300]
    assert verify(tmp_path / "out")


def test_a_text_that_is_all_bad_is_refused(tmp_path, make):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"txt": "a"}\n' * 3)
    with pytest.raises(KrakenError, match=r'no text is left.*a\.jsonl:1: no key "text".*--column'):
        make(texts=[tmp_path / "a.jsonl", tmp_path / "b.jsonl"], skip_bad=True)
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_is_all_bad_stays_among_the_sources(tmp_path, make, source):
    (tmp_path / "b.jsonl").write_text("{\n{\n")
    manifest = make(texts=[tmp_path / "b.jsonl", source], skip_bad=True)
    assert [(each.bytes > 0, each.skipped) for each in manifest.sources] == [(False, 2), (True, 0)]


def test_a_folder_of_that_name_with_other_things_is_left_alone(tmp_path, make):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "mine.txt").write_text("keep")
    with pytest.raises(KrakenError, match=r"out\.unfinished is not a preparation that was inter"):
        make()
    assert (tmp_path / "out.unfinished" / "mine.txt").read_text() == "keep"


def test_two_at_once_do_not_mix(tmp_path, make):
    with (
        resumable_directory(tmp_path / "out", worth_keeping=lambda _: False),
        pytest.raises(KrakenError, match="is being written by another krakenlm"),
    ):
        make()
    make()
