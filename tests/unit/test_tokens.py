import errno
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from krakenlm.data import preparation, text, tokens, workers, writer
from krakenlm.data.manifest import Manifest
from krakenlm.data.tokenizer import load_tokenizer, plain_encoder
from krakenlm.data.tokens import open_split, prepare
from krakenlm.errors import KrakenError


def write_documents(path, documents):
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    return path


def documents_of(directory, split):
    opened = open_split(directory, split, verify=True)
    encoder = plain_encoder(load_tokenizer(directory))
    ids = opened.tokens[:].astype(int)
    ends = np.flatnonzero(ids == opened.manifest.eos_id)
    parts = np.split(ids, ends + 1)
    decoded = [encoder.decode(part[part != opened.manifest.eos_id].tolist()) for part in parts]
    assert decoded[-1] == "" or split == "train"
    return decoded[:-1] if decoded[-1] == "" else decoded


def only(tmp_path, *names):
    """Nothing half-written: the folder holds these and nothing else, hidden or not."""
    return sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_prepared_directory_gives_every_document_back(tmp_path, tokenizer):
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    manifest = prepare([source], tokenizer, tmp_path / "out", validation_fraction=0.1)
    train, validation = (documents_of(tmp_path / "out", split) for split in tokens.SPLITS)
    assert sorted(train + validation) == sorted(tiny.DOCUMENTS)
    assert 10 <= len(validation) <= 60
    assert manifest == Manifest.load(tmp_path / "out")
    assert manifest.validation_from == "documents"
    for split, texts in (("train", train), ("validation", validation)):
        info = getattr(manifest.splits, split)
        path = tmp_path / "out" / f"{split}-00000.bin"
        assert info.documents == len(texts)
        assert info.bytes == len("".join(texts).encode())
        assert info.tokens == path.stat().st_size // 2
        assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest.dtype, manifest.vocab_size, manifest.eos_id) == ("uint16", 300, 0)
    saved = tmp_path / "out" / "tokenizer" / "tokenizer.json"
    assert manifest.tokenizer.source == tokenizer
    assert manifest.tokenizer.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert [each.path for each in manifest.sources] == [str(source)]
    assert manifest.sources[0].bytes == len("".join(tiny.DOCUMENTS).encode())
    assert only(tmp_path, "a.jsonl", "out")


def test_adding_text_moves_no_document(tmp_path, tokenizer):
    first = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS[:150])
    second = write_documents(tmp_path / "b.jsonl", tiny.DOCUMENTS[150:])
    prepare([first], tokenizer, tmp_path / "few", validation_fraction=0.1)
    prepare([second, first], tokenizer, tmp_path / "many", validation_fraction=0.1)
    for split in tokens.SPLITS:
        few, many = (set(documents_of(tmp_path / name, split)) for name in ("few", "many"))
        assert few and few < many


def test_pieces_of_a_document_stay_together(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(text, "PIECE_CHARS", 50)
    monkeypatch.setattr(workers, "_BATCH_CHARS", 120)
    long = ["".join(tiny.DOCUMENTS[i : i + 5]) for i in range(0, 300, 5)]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(
        gzip.compress("".join(json.dumps({"text": each}) + "\n" for each in long).encode())
    )
    prepare([packed], tokenizer, tmp_path / "out", validation_fraction=0.2)
    found = [documents_of(tmp_path / "out", split) for split in tokens.SPLITS]
    assert all(found)
    assert sorted([*found[0], *found[1]]) == sorted(long)


@pytest.mark.parametrize("lucky", ["train", "validation"])
@pytest.mark.parametrize("piece_chars", [1 << 18, 60])
def test_few_documents_hold_out_the_tail_with_exact_bytes(
    tmp_path, tokenizer, monkeypatch, lucky, piece_chars
):
    monkeypatch.setattr(text, "PIECE_CHARS", piece_chars)
    monkeypatch.setattr(preparation, "belongs_to_validation", lambda *_: lucky == "validation")
    content = "🦊日本語été " * 60
    path = tmp_path / "a.txt"
    path.write_text(content)
    for percent in range(1, 40, 3):  # cuts at different places of multi-byte characters
        out = tmp_path / "out"
        manifest = prepare([path], tokenizer, out, validation_fraction=percent / 100, replace=True)
        train, validation = (documents_of(out, split) for split in tokens.SPLITS)
        assert train[0] + validation[0] == content
        assert manifest.validation_from == "tail"
        assert manifest.splits.train.bytes == len(train[0].encode())
        assert manifest.splits.validation.bytes == len(validation[0].encode())
        total = manifest.splits.train.tokens + manifest.splits.validation.tokens
        assert abs(manifest.splits.validation.tokens - total * percent / 100) < 5
        assert manifest.splits.train.documents == manifest.splits.validation.documents == 1


def test_tail_counts_whole_and_cut_documents(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(preparation, "belongs_to_validation", lambda *_: False)
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS[:10])
    manifest = prepare([source], tokenizer, tmp_path / "out", validation_fraction=0.33)
    train, validation = (documents_of(tmp_path / "out", split) for split in tokens.SPLITS)
    assert manifest.splits.train.documents == len(train)
    assert manifest.splits.validation.documents == len(validation)
    assert len(train) + len(validation) in (10, 11)
    assert "".join(train + validation) == "".join(tiny.DOCUMENTS[:10])


def test_large_vocabulary_takes_four_bytes_a_token(tmp_path, tokenizer, monkeypatch):
    large = load_tokenizer(tokenizer)
    large.add_tokens([f"<extra {i}>" for i in range(1 << 16)])
    monkeypatch.setattr(tokens, "tokenizer_for", lambda *_: large)
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS[:100])
    manifest = prepare([source], "large", tmp_path / "out", validation_fraction=0.2)
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 65836)
    opened = open_split(tmp_path / "out", "train", verify=True)
    assert opened.tokens.dtype == np.dtype("<u4")


def test_train_spec_and_table(tmp_path, capsys):
    from krakenlm.cli.prepare import prepare as prepare_command

    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    prepare_command(
        tmp_path / "out", text=[source], tokenizer="train:280", validation_fraction=0.1, workers=1
    )
    printed = capsys.readouterr().out
    assert "train" in printed and "validation" in printed and "280" in printed
    assert Manifest.load(tmp_path / "out").vocab_size == 280


def test_existing_output_is_kept_unless_replacing_a_prepared_one(tmp_path, tokenizer):
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(KrakenError, match="out exists already"):
        prepare([source], tokenizer, out)
    with pytest.raises(KrakenError, match="out is not a prepared directory"):
        prepare([source], tokenizer, out, replace=True)
    assert (out / "mine.txt").read_text() == "keep"
    made = tmp_path / "made"
    prepare([source], tokenizer, made)
    before = (made / "manifest.json").read_bytes()
    inside = write_documents(made / "text.jsonl", tiny.DOCUMENTS)
    with pytest.raises(KrakenError, match="made is not a prepared directory and nothing else"):
        prepare([inside], tokenizer, made, replace=True)
    assert (made / "manifest.json").read_bytes() == before
    inside.unlink()
    prepare([source], str(made), made, replace=True)  # with its own tokenizer
    assert only(tmp_path, "a.jsonl", "out", "made")


@pytest.mark.parametrize("fraction", [0, -0.1, 0.6, float("nan")])
def test_impossible_fractions_are_refused(tmp_path, tokenizer, fraction):
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    with pytest.raises(KrakenError, match="validation fraction"):
        prepare([source], tokenizer, tmp_path / "out", validation_fraction=fraction)
    assert only(tmp_path, "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, r"gone\.txt does not exist"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.txt", b"a", "too little"),
        ("a.txt", b"fine\xff", r"not UTF-8 text at byte 4"),
        ("a.jsonl", b'{"text": "x"}\n{', r"a\.jsonl:2: not valid JSON"),
        ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:-9], "not a whole gzip file"),
    ],
)
def test_bad_text_leaves_nothing_behind(tmp_path, tokenizer, name, content, message):
    present = [] if content is None else [name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KrakenError, match=message):
        prepare([tmp_path / name], tokenizer, tmp_path / "out")
    assert only(tmp_path, *present)


def test_token_outside_the_vocabulary_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(workers, "encode", lambda _, texts: [[1, 300] for _ in texts])
    monkeypatch.setattr(tokens, "check_lossless", lambda *_: None)
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    with pytest.raises(KrakenError, match=r"a\.jsonl.*token 300, outside its vocabulary of 300"):
        prepare([source], tokenizer, tmp_path / "out")
    assert only(tmp_path, "a.jsonl")


def failing_at(monkeypatch, error, calls=2):
    """Let writing tokens fail with this error once some have been written."""
    append, count = writer.SplitWriter.append, iter(range(1, 1000))

    def append_or_fail(self, ids):
        if next(count) > calls:
            raise error
        append(self, ids)

    monkeypatch.setattr(writer.SplitWriter, "append", append_or_fail)


@pytest.mark.parametrize("replace", [False, True])
def test_interrupt_leaves_the_output_as_it_was(tmp_path, tokenizer, monkeypatch, replace):
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    out = tmp_path / "out"
    if replace:
        prepare([source], tokenizer, out)
    failing_at(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tokenizer, out, replace=replace)
    assert only(tmp_path, "a.jsonl", *(["out"] if replace else []))
    if replace:
        open_split(out, "train", verify=True)


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    failing_at(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KrakenError, match=r"cannot write .*out: no space left on the disk"):
        prepare([source], tokenizer, tmp_path / "out")
    assert only(tmp_path, "a.jsonl")


def test_full_disk_while_saving_the_tokenizer(tmp_path, tokenizer, monkeypatch):
    loaded = load_tokenizer(tokenizer)

    def refuse(*_, **__):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(loaded, "save_pretrained", refuse)
    monkeypatch.setattr(tokens, "tokenizer_for", lambda *_: loaded)
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    with pytest.raises(KrakenError, match="no space left on the disk"):
        prepare([source], tokenizer, tmp_path / "out")
    assert only(tmp_path, "a.jsonl")


def test_full_disk_for_real(tokenizer, tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "train-00000.bin").symlink_to(full)
    split = writer.SplitWriter(tmp_path, "train", np.dtype("<u2"), 1_000_000)
    with pytest.raises(OSError) as caught:
        split.append(np.ones(100_000, np.uint32))
    assert caught.value.errno == errno.ENOSPC


@pytest.fixture
def prepared(tmp_path, tokenizer):
    source = write_documents(tmp_path / "a.jsonl", tiny.DOCUMENTS)
    prepare([source], tokenizer, tmp_path / "out", validation_fraction=0.1)
    return tmp_path / "out"


def test_open_split_maps_read_only(prepared):
    opened = open_split(prepared, "validation")
    assert opened.tokens.ndim == 1 and len(opened.tokens) == opened.info.tokens
    assert not opened.tokens.flags.writeable
    with pytest.raises(KrakenError, match="no split 'test': choose one of train, validation"):
        open_split(prepared, "test")


def test_damaged_token_files_are_named(prepared):
    path = prepared / "train-00000.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(KrakenError, match=r"train-00000\.bin has .* truncated or damaged"):
        open_split(prepared, "train")
    path.write_bytes(b"\x01\x00" + data[2:])
    open_split(prepared, "train", verify=False)
    with pytest.raises(KrakenError, match=r"train-00000\.bin is damaged"):
        open_split(prepared, "train")  # small enough to be looked at
    with pytest.raises(KrakenError, match=r"train-00000\.bin is damaged"):
        open_split(prepared, "train", verify=True)
    path.unlink()
    with pytest.raises(KrakenError, match=r"train-00000\.bin is missing"):
        open_split(prepared, "train")


def test_what_is_no_prepared_directory_is_refused(tmp_path, prepared):
    with pytest.raises(KrakenError, match="gone does not exist"):
        open_split(tmp_path / "gone", "train")
    with pytest.raises(KrakenError, match=r"holds no manifest\.json"):
        open_split(tmp_path, "train")
    with pytest.raises(KrakenError, match="is a file"):
        open_split(tmp_path / "a.jsonl", "train")


def shard(manifest):
    return manifest["splits"]["train"]["shards"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m.pop("eos_id"), "eos_id is missing"),
        (lambda m: m["splits"]["train"].pop("bytes"), "bytes is missing in splits.train"),
        (lambda m: m["sources"][0].update(x=1), r"unknown key 'x' in sources\[0\]"),
        (lambda m: m.update(dtype="int8"), "dtype='int8': choose one of 'uint16', 'uint32'"),
        (lambda m: m.update(vocab_size="many"), "vocab_size='many': needs a value of type int"),
        (lambda m: m["splits"]["train"].update(tokens=-1), "tokens=-1: needs 0 or more"),
        (lambda m: m.update(sources={}), "sources={}: needs a value of type list"),
        (lambda m: m.update(splits=[]), r"splits is \[\]: needs a table"),
        (lambda m: m.update(format_version=4), "format_version is 4, this krakenlm reads 1 to 3"),
        (lambda m: m["sources"][0].update(skipped=-1), "skipped=-1: needs 0 or more"),
        (lambda m: m["sources"][0].update(part=""), r"unknown key 'part' in sources\[0\]"),
        (lambda m: m["splits"]["train"].update(tokens=1), "tokens=1: needs the sum of the shards"),
        (lambda m: shard(m).update(file="../x"), "needs the name of a file in the directory"),
        (lambda m: shard(m).pop("sha256"), r"sha256 is missing in splits\.train\.shards\[0\]"),
    ],
)
def test_manifest_is_read_strictly(prepared, change, message):
    path = prepared / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(KrakenError, match=message):
        Manifest.load(prepared)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_manifest_that_is_no_json_object_is_refused(prepared, content):
    (prepared / "manifest.json").write_bytes(content)
    with pytest.raises(KrakenError, match=r"manifest\.json.*prepare the text again"):
        Manifest.load(prepared)
