"""Text through Hugging Face datasets: folders and table files; the Hub itself is never asked."""

import json
import sys

import pytest

from krakenlm.data import hub
from krakenlm.data.hub import HubDataset, is_table
from krakenlm.data.manifest import SPLITS
from krakenlm.data.text import pieces
from krakenlm.data.tokens import open_split, prepare
from krakenlm.errors import KrakenError

datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")

DOCUMENTS = [f"Document {i}: été 🦊 {'word ' * (i % 7)}\nend {i * i}\n" for i in range(200)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_answers", lambda: pytest.fail("asked the Hub"))


@pytest.fixture
def folder(tmp_path):
    """A dataset of one file, with a column of numbers and one row without text."""
    made = tmp_path / "dataset"
    made.mkdir()
    rows = [{"content": each, "n": i} for i, each in enumerate(DOCUMENTS)]
    rows.insert(7, {"content": None, "n": -1})
    (made / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_a_dataset_gives_the_tokens_of_the_file_it_is_made_of(tmp_path, folder):
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"content": each}) + "\n" for each in DOCUMENTS))
    manifest = prepare(
        [plain], "train:300", tmp_path / "a", validation_fraction=0.1, column="content"
    )
    wanted = HubDataset(name=str(folder), column="content")
    found = prepare(
        wanted, str(tmp_path / "a"), tmp_path / "b", validation_fraction=0.1, shard_tokens=999
    )
    for split in SPLITS:
        one, other = (open_split(tmp_path / name, split) for name in "ab")
        assert one.tokens[:].tolist() == other.tokens[:].tolist()
        assert one.info.documents == other.info.documents > 0
    (source,) = found.sources
    assert (source.path, source.part) == (str(folder), "split train, column content")
    assert source.bytes == manifest.sources[0].bytes == len("".join(DOCUMENTS).encode())


def test_an_interrupted_dataset_goes_on_and_teaches_a_tokenizer(tmp_path, folder, monkeypatch):
    from krakenlm.data import workers, writer

    monkeypatch.setattr(workers, "_BATCH_PIECES", 10)
    wanted = HubDataset(name=str(folder), column="content", split="train[:90%]")
    options = {"validation_fraction": 0.1, "shard_tokens": 500}
    whole = prepare(wanted, "train:280", tmp_path / "whole", **options)
    assert sum(whole.split(name).documents for name in SPLITS) == 180
    append, count = writer.SplitWriter.append, iter(range(1000))

    def stop(self, ids):
        if next(count) == 100:
            raise KeyboardInterrupt
        append(self, ids)

    monkeypatch.setattr(writer.SplitWriter, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(wanted, "train:280", tmp_path / "out", **options)
    assert (tmp_path / "out.unfinished" / "train-00000.bin").is_file()
    assert prepare(wanted, "train:280", tmp_path / "out", **options) == whole


def test_table_files_are_read_row_by_row(tmp_path):
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS, "n": list(range(len(DOCUMENTS)))})
    rows.to_parquet(str(tmp_path / "a [1].parquet"))
    rows.to_csv(str(tmp_path / "a.csv"), index=False)
    rows.to_json(str(tmp_path / "a.json"))
    for name in ("a [1].parquet", "a.csv", "a.json"):
        found = list(pieces([tmp_path / name]))
        assert [piece.text for piece in found] == DOCUMENTS, name
        assert {piece.source for piece in found} == {str(tmp_path / name)}
    manifest = prepare([tmp_path / "a [1].parquet"], "train:280", tmp_path / "out")
    assert sum(manifest.split(name).documents for name in SPLITS) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("a.parquet", True),
        ("a.csv.gz", True),
        ("a.jsonl.zst", True),
        ("a.jsonl", False),
        ("a.JSONL.gz", False),
        ("a.txt", False),
        ("a.py.gz", False),
        ("README", False),
        (".gz", False),
    ],
)
def test_which_files_are_tables(tmp_path, name, table):
    assert is_table(tmp_path / name) == table


@pytest.mark.parametrize(
    ("wanted", "essentials"),
    [
        ({}, ["no column 'text'", "content, n", "--column NAME"]),
        ({"column": "n"}, ["column 'n' holds a int, not text", "--column"]),
        ({"split": "test"}, ["cannot load dataset", "test", "--split"]),
        ({"config": "gone"}, ["cannot load dataset", "gone", "--config"]),
    ],
)
def test_what_does_not_fit_the_dataset_is_one_line(tmp_path, folder, wanted, essentials):
    with pytest.raises(KrakenError) as caught:
        prepare(HubDataset(name=str(folder), **wanted), "train:300", tmp_path / "out")
    for each in essentials:
        assert each in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_hub_out_of_reach_names_the_local_alternative(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(KrakenError, match=r"Hub cannot be reached.*--text FILE\.\.\.") as caught:
        prepare(HubDataset(name="openwebtext"), "gpt2", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_dataset(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(KrakenError, match=r"a\.txt is a file: give it with --text"):
        prepare(HubDataset(name=str(tmp_path / "a.txt")), "gpt2", tmp_path / "out")


def test_damaged_and_empty_tables_are_named(tmp_path):
    for name, content, message in (
        ("a.parquet", b"PAR1 no", r"cannot read .*a\.parquet .*damaged"),
        ("b.csv", b"title\nx\n", r"b\.csv has no column 'text' \(columns: title\)"),
        ("c.csv", b'text\n" "\n', r"c\.csv is empty"),
        ("d.csv", None, r"d\.csv does not exist"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(KrakenError, match=message) as caught:
            list(pieces([tmp_path / name]))
        assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(KrakenError, match=r"pip install 'krakenlm\[data\]'"):
        prepare([tmp_path / "a.parquet"], "train:300", tmp_path / "out")
    with pytest.raises(KrakenError, match=r"dataset openwebtext .*krakenlm\[data\]"):
        prepare(HubDataset(name="openwebtext"), "gpt2", tmp_path / "out")
