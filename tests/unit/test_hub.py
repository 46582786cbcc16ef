"""Text through Hugging Face datasets: folders and table files; the Hub itself is never asked."""

import bz2
import json
import lzma
import sys

import pytest

from krakenlm.data import hub
from krakenlm.data.bad_text import Skipped
from krakenlm.data.corpus import Rows
from krakenlm.data.hub import PARQUET_BRANCH, HubDataset, is_table
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


def test_options_of_a_reader_that_it_does_not_know_are_refused_by_name(tmp_path, monkeypatch):
    """Which is what would happen to ours if ``datasets`` renamed them."""
    (tmp_path / "a.tsv").write_text("text\tn\nhello\t1\n")
    monkeypatch.setitem(hub._READERS, ".tsv", ("csv", {"seperator": "\t"}))
    with pytest.raises(KrakenError, match="seperator"):
        list(hub.table_texts(tmp_path / "a.tsv", "text"))


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
    assert (source.path, source.split, source.column) == (str(folder), "train", "content")
    assert (source.config, source.revision, source.skipped) == ("", "", 0)
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


def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path):
    rows = b'{"text": "one"}\n{"text": "two"}\n'
    table, tabs = b"text,n\none,1\ntwo,2\n", b"text\tn\none\t1\ntwo\t2\n"
    for name, pack, content in (
        ("a.json", bytes, rows),
        ("b.json", bytes, b'[{"text": "one"}, {"text": "two"}]'),
        ("a.jsonl.bz2", bz2.compress, rows),
        ("a.csv.bz2", bz2.compress, table),
        ("a.tsv.xz", lzma.compress, tabs),
    ):
        for mark in (b"", b"\xef\xbb\xbf"):
            (tmp_path / name).write_bytes(pack(mark + content))
            found = [piece.text for piece in pieces([tmp_path / name])]
            assert found == ["one", "two"], name
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("one\nmore\n" * 20, encoding="utf-8-sig")
    manifest = prepare(HubDataset(name=str(tmp_path / "folder")), "train:257", tmp_path / "out")
    assert manifest.sources[0].bytes == len("onemore" * 20)


def test_what_is_bad_in_a_table_is_left_out(tmp_path):
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "c.csv.bz2").write_bytes(bz2.compress(b"text\none\n" + b"\xff\n"))
    for name in ("b.parquet", "c.csv.bz2"):
        skipped = Skipped(allowed=True)
        assert list(pieces([tmp_path / name], on_bad=skipped.add)) == []
        assert len(skipped.named) == 1
        assert skipped.named[0].startswith(f"cannot read {tmp_path / name} (")


def test_rows_of_something_else_than_text_are_left_out(tmp_path):
    """As ``datasets`` gives them for a column that holds values of several types."""

    class Mixed:
        column_names = ("text",)

        def __len__(self):
            return 4

        def select(self, chosen):
            return self

        def iter(self, batch_size):
            yield {"text": ["a document\n", 7, None, "another one\n"]}

    skipped = Skipped(allowed=True)
    corpus = Rows(wanted=HubDataset(name="some"), rows=Mixed(), skipped=skipped)
    for _ in range(2):  # each reading counts anew
        found = list(corpus.pieces())
        assert [(piece.text, piece.position) for piece in found] == [
            ("a document\n", 1),
            ("another one\n", 4),
        ]
        assert skipped.named == ["dataset some, row 2: column 'text' holds a int, not text"]
    assert list(corpus.sample(1000)) == ["a document\n", "", "", "another one\n"]
    (source,) = corpus.sources({"some": 5})
    assert (source.bytes, source.skipped) == (5, 1)
    with pytest.raises(KrakenError, match="row 2: column 'text' holds a int"):
        list(Rows(wanted=HubDataset(name="some"), rows=Mixed()).pieces())


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("a.parquet", True),
        ("a.csv.xz", True),
        ("a.tsv.zst", True),
        ("a.json.gz", True),
        ("a.csv.gz", False),
        ("a.TSV", False),
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


@pytest.fixture
def parquet(tmp_path):
    """A folder as the Hub converts a dataset of two configurations."""
    for config, part in (("plain", DOCUMENTS[:50]), ("other", DOCUMENTS[50:])):
        (tmp_path / "converted" / config / "partial-train").mkdir(parents=True)
        rows = datasets.Dataset.from_dict({"text": part})
        rows.to_parquet(str(tmp_path / "converted" / config / "partial-train" / "0000.parquet"))
    return tmp_path / "converted"


def test_a_folder_of_parquet_is_a_dataset(tmp_path, parquet):
    manifest = prepare(HubDataset(name=str(parquet)), "train:280", tmp_path / "out")
    assert manifest.sources[0].bytes == len("".join(DOCUMENTS).encode())


def test_a_revision_reaches_the_library_and_the_manifest(tmp_path, parquet, monkeypatch):
    load, asked = datasets.load_dataset, []

    def load_dataset(path, *, name, data_dir, split, revision):
        asked.append((path, name, data_dir, split, revision))
        return load(str(parquet), data_dir=data_dir, split=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    wanted = {"config": "plain", "split": "train", "column": "text"}
    for revision in (PARQUET_BRANCH, "v1.0"):
        dataset = HubDataset(name="some/name", revision=revision, **wanted)
        # What an interrupted run is told apart by.
        part = f"configuration plain, split train, column text, revision {revision}"
        assert Rows(wanted=dataset, rows=()).names == ("some/name", part)
        manifest = prepare(dataset, "train:280", tmp_path / "out", replace=True)
        (source,) = manifest.sources
        assert {key: getattr(source, key) for key in wanted} == wanted
        assert (source.path, source.revision) == ("some/name", revision)
        if revision == PARQUET_BRANCH:  # where a configuration is a folder
            assert source.bytes == len("".join(DOCUMENTS[:50]).encode())
    assert asked == [
        ("some/name", None, "plain", "train", PARQUET_BRANCH),
        ("some/name", "plain", None, "train", "v1.0"),
    ]


def test_a_folder_has_no_revision(tmp_path, parquet):
    wanted = HubDataset(name=str(parquet), revision="main")
    with pytest.raises(
        KrakenError, match="is a folder, which has no revision main: leave out --rev"
    ):
        prepare(wanted, "gpt2", tmp_path / "out")


def test_a_script_is_refused_with_what_to_give_instead(tmp_path, monkeypatch):
    script = tmp_path / "some" / "some.py"
    script.parent.mkdir()
    script.write_text("raise SystemExit('was run')\n")
    with pytest.raises(
        KrakenError, match=r"some is a script, .* runs none: .*--text FILE"
    ) as caught:
        prepare(HubDataset(name=str(script.parent)), "gpt2", tmp_path / "out")
    assert "\n" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: load(str(script.parent)))
    with pytest.raises(KrakenError) as caught:  # as the library says it of one on the Hub
        prepare(HubDataset(name="some/script"), "gpt2", tmp_path / "out")
    assert str(caught.value) == (
        "dataset some/script is a script, and datasets runs none: give one in Parquet, or what "
        "the Hub has converted of it (of a large one the beginning only), --revision "
        "refs/convert/parquet"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


def test_a_file_is_no_dataset(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(KrakenError, match=r"a\.txt is a file: give it with --text"):
        prepare(HubDataset(name=str(tmp_path / "a.txt")), "gpt2", tmp_path / "out")


def test_damaged_and_empty_tables_are_named(tmp_path):
    for name, content, message in (
        ("a.parquet", b"PAR1 no", r"cannot read .*a\.parquet .*damaged"),
        ("b.json", b'{"title": "x"}', r"b\.json has no column 'text' \(columns: title\)"),
        ("c.json", b'{"text": " "}', r"c\.json is empty"),
        ("d.parquet", None, r"d\.parquet does not exist"),
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
