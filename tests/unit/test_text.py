import codecs
import gzip
import json
from itertools import pairwise

import pytest

from krakenlm.data import lines as line_reader
from krakenlm.data import text
from krakenlm.data.bad_text import Skipped
from krakenlm.data.text import check_files, pieces, utf8_length
from krakenlm.errors import KrakenError


def documents(*paths, **options):
    found, current = [], []
    for piece in pieces(paths, **options):
        assert piece.first == (not current)
        current.append(piece.text)
        if piece.last:
            found.append("".join(current))
            current = []
    assert not current
    return found


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(*texts):
    return "".join(json.dumps({"text": each, "id": 1}) + "\n" for each in texts)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.py", "a.rst", "README", "a.TXT.GZ"])
def test_plain_file_is_one_document_with_every_byte_kept(tmp_path, name):
    content = "\ttwo\r\nlines, été 🦊\n\n"
    path = tmp_path / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert documents(path) == [content]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_each_json_line_is_a_document_and_blank_ones_are_left_out(tmp_path, name):
    content = lines("one\n", "") + "\n" + lines(" \n", "zwei ü")
    assert documents(write(tmp_path / name, content)) == ["one\n", "zwei ü"]


def test_files_are_read_in_order_and_positions_reach_their_sizes(tmp_path):
    paths = [write(tmp_path / "b.txt", "b"), write(tmp_path / "a.jsonl.gz", lines("x", "y"))]
    assert documents(*paths) == ["b", "x", "y"]
    last = list(pieces(paths))[-1]
    assert (last.source, last.position) == (str(paths[1]), paths[1].stat().st_size)
    assert check_files(paths) == {path: path.stat().st_size for path in paths}


def test_long_documents_are_cut_at_line_ends_the_same_way_from_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PIECE_CHARS", 100)
    monkeypatch.setattr(line_reader, "_READ_BYTES", 7)  # cuts two- and four-byte characters
    content = "".join(f"été {i} 🦊\n" + "\n" * (i % 3) for i in range(100))
    plain = list(pieces([write(tmp_path / "a.txt", content)]))
    packed = list(pieces([write(tmp_path / "a.jsonl.gz", lines(content))]))
    assert [piece.text for piece in plain] == [piece.text for piece in packed]
    assert "".join(piece.text for piece in plain) == content
    assert [piece.first for piece in plain] == [True] + [False] * (len(plain) - 1)
    assert [piece.last for piece in plain] == [False] * (len(plain) - 1) + [True]
    for before, after in pairwise(plain):
        assert len(before.text) <= 100
        assert before.text.endswith("\n") and not before.text.endswith("\n\n")
        assert not after.text[0].isspace()


@pytest.mark.parametrize(
    ("content", "first"),
    [("x" * 25, "x" * 10), ("ab cd ef gh ij", "ab cd ef"), ("a\n\n" * 9, "a\n\na\n\na\n\n")],
)
def test_text_without_good_line_ends_is_cut_all_the_same(tmp_path, monkeypatch, content, first):
    monkeypatch.setattr(text, "PIECE_CHARS", 10)
    found = list(pieces([write(tmp_path / "a.txt", content)]))
    assert found[0].text == first
    assert "".join(piece.text for piece in found) == content


def test_utf8_length():
    assert utf8_length("abc") == 3
    assert utf8_length("é🦊") == 6


@pytest.mark.parametrize(
    ("name", "content", "essentials"),
    [
        ("a.txt", b"", ["a.txt", "empty"]),
        ("a.txt", b" \n\n", ["a.txt", "empty"]),
        ("a.txt.gz", b"", ["a.txt.gz", "empty"]),
        ("a.jsonl", b"\n" + lines("").encode(), ["a.jsonl", "empty"]),
        ("a.txt", b"ok \xc3\xa9 \xff", ["a.txt", "UTF-8", "byte 6", "iconv"]),
        ("a.txt", b"cut \xf0\x9f", ["a.txt", "UTF-8", "byte 4"]),
        ("a.txt.gz", b"abc\xff", ["a.txt.gz", "byte 3 of what it unpacks to"]),
        ("a.jsonl", lines("ok").encode() + b'{"text": "\xff"}', ["a.jsonl", "UTF-8", "byte 34"]),
        ("a.jsonl", lines("ok") + "{nope\n", ["a.jsonl:2", "not valid JSON"]),
        ("a.jsonl", "[" * 100_000, ["a.jsonl:1", "not valid JSON"]),
        ("a.jsonl", '{"txt": "a", "id": 1}', ["a.jsonl:1", 'no key "text"', "txt, id"]),
        ("a.jsonl", '"a"', ["a.jsonl:1", "str", "not an object"]),
        ("a.jsonl", '{"text": null}', ["a.jsonl:1", "NoneType", "string"]),
        ("a.jsonl", '{"text": "\\ud800"}', ["a.jsonl:1", "surrogate"]),
    ],
)
def test_bad_content_is_named_with_its_place(tmp_path, name, content, essentials):
    path = write(tmp_path / name, content)
    with pytest.raises(KrakenError) as caught:
        documents(path)
    for each in essentials:
        assert each in str(caught.value)
    assert "\n" not in str(caught.value)


def test_utf8_offset_counts_from_the_start_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(line_reader, "_READ_BYTES", 5)
    path = write(tmp_path / "a.txt", "ééééééé".encode() + b"\xff")
    with pytest.raises(KrakenError, match="byte 14:"):
        documents(path)


TABLE = 'n,text\n1,"one, ""two""\nlines"\n\n2,NA\n3,07\n4,\n'


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.TSV"])
def test_each_row_of_a_table_is_a_document_as_it_is_written(tmp_path, name):
    content = TABLE.replace(",", "\t") if "tsv" in name.lower() else TABLE
    one = content[content.index('"one') + 1 :].partition('"\n\n')[0].replace('""', '"')
    found = documents(write(tmp_path / name, content))
    assert found == [one, "NA", "07"]
    last = list(pieces([tmp_path / name]))[-1]
    assert 0 < last.position <= (tmp_path / name).stat().st_size  # so that progress moves


def test_cells_may_be_long(tmp_path):
    long = "word " * 40_000
    assert documents(write(tmp_path / "a.csv", f"text\n{long}\n")) == [long]


@pytest.mark.parametrize(
    ("content", "essentials"),
    [
        ("title\nx\n", ["a.csv has no column 'text'", "title", "--column"]),
        ("text,n\na,1\nb,2,3\n", ["a.csv:3: 3 cells in a row where the heading has 2"]),
        ('text,n\n"a\nb",1\nb\n', ["a.csv:4: 1 cells in a row"]),
        ('text,n\n"a"b,1\n', ["a.csv:2: not a row of a table", "quotation marks"]),
        ('text,n\n"a,1\nb,2\n', ["a.csv:2: not a row of a table", "unexpected end of data"]),
        (b"text\na\xff\n", ["a.csv:2: not UTF-8", "iconv"]),
        ("text\n\n", ["a.csv is empty"]),
        (b"\n", ["a.csv is empty"]),
    ],
)
def test_bad_tables_are_named_with_the_place(tmp_path, content, essentials):
    with pytest.raises(KrakenError) as caught:
        documents(write(tmp_path / "a.csv", content))
    for each in essentials:
        assert each in str(caught.value)
    assert "\n" not in str(caught.value)


# --- byte order marks ----------------------------------------------------------------------------

KINDS = {
    "a.txt": "one\ntwo\n",
    "a.py": "one\ntwo\n",
    "a.jsonl": lines("one", "two"),
    "a.csv": 'text,n\none,1\n"two",2\n',
    "quoted.csv": '"text",n\n"one",1\n"two",2\n',
    "a.tsv": "text\tn\none\t1\ntwo\t2\n",
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", KINDS)
def test_a_byte_order_mark_changes_nothing(tmp_path, name, packed):
    plain = documents(write(tmp_path / (name + packed), KINDS[name]))
    assert plain in (["one\ntwo\n"], ["one", "two"])
    (tmp_path / "marked").mkdir()
    marked = write(tmp_path / "marked" / (name + packed), codecs.BOM_UTF8 + KINDS[name].encode())
    assert documents(marked) == plain


def test_a_mark_within_a_text_stays_and_one_before_it_goes(tmp_path):
    joined = "\ufeffone\n\ufefftwo\n"  # of two files
    assert documents(write(tmp_path / "a.txt", joined)) == [joined[1:]]
    objects = "\ufeff" + lines("\ufeffone") + "\ufeff" + lines("t\ufeffwo") + "\ufeff\n"
    assert documents(write(tmp_path / "a.jsonl", objects)) == ["one", "t\ufeffwo"]
    table = '\ufefftext,n\n"one\n\ufefftwo",1\n'
    assert documents(write(tmp_path / "a.csv", table)) == ["one\n\ufefftwo"]
    for name in ("b.txt", "b.jsonl", "b.csv"):
        with pytest.raises(KrakenError, match=f"{name} is empty"):
            documents(write(tmp_path / name, "\ufeff"))


def test_places_are_counted_with_the_mark(tmp_path):
    for name, at in (("a.txt", 4), ("a.jsonl", 14)):
        content = codecs.BOM_UTF8 + (
            b"a\xff" if at == 4 else b'{"text": "\xff"}'.replace(b" ", b"  ")
        )
        with pytest.raises(KrakenError, match=rf"{name}:1: not UTF-8 text at byte {at}:"):
            documents(write(tmp_path / name, content))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", [*KINDS, "a.txt.gz", "a.jsonl.gz", "a.json"])
def test_utf_16_and_32_are_refused_with_what_to_do(tmp_path, name, encoding):
    content = KINDS.get(name.removesuffix(".gz"), '{"text": "one"}\n').encode(encoding)
    if encoding.endswith("be"):
        content = "\ufeff".encode(encoding) + content
    kind = encoding.upper().removesuffix("-BE")
    with pytest.raises(KrakenError) as caught:
        documents(write(tmp_path / name, content))
    assert str(caught.value).startswith(f"{tmp_path / name} is {kind} text: convert it, iconv -f ")
    assert f"iconv -f {kind} -t UTF-8" in str(caught.value)
    skipped = Skipped(allowed=True)
    assert documents(tmp_path / name, on_bad=skipped.add) == []
    assert skipped.named == [f"{tmp_path / name} is {kind} text"]


# --- what may be left out ------------------------------------------------------------------------


def left_out(path, content):
    """The documents without what is bad, and what that was, without the folder's name."""
    skipped = Skipped(allowed=True)
    found = documents(write(path, content), on_bad=skipped.add)
    assert skipped.counts == ({str(path): len(skipped.named)} if skipped.named else {})
    return found, [each.removeprefix(f"{path.parent}/") for each in skipped.named]


def test_bad_json_lines_are_left_out_and_named(tmp_path):
    good = [line.encode() + b"\n" for line in lines("one", "two", "three").splitlines()]
    bad = [
        (b"{nope\n", "a.jsonl:2: not valid JSON"),
        (b'{"txt": 1}\n', 'a.jsonl:3: no key "text"'),
        (b'["a"]\n', "a.jsonl:4: a JSON list"),
        (b'{"text": 7}\n', 'a.jsonl:6: "text" is a int'),
        (b'{"text": "\xff"}\n', "a.jsonl:7: not UTF-8 text at byte"),
        (b'{"text": "\\ud800"}\n', "a.jsonl:8: half of a surrogate pair"),
        (b'{"text": "cut', "a.jsonl:10: not valid JSON"),
    ]
    order = [good[0], *(line for line, _ in bad[:3]), good[1], *(line for line, _ in bad[3:6])]
    found, named = left_out(tmp_path / "a.jsonl", b"".join([*order, good[2], bad[6][0]]))
    assert found == ["one", "two", "three"]
    assert len(named) == len(bad)
    for said, (_, begins) in zip(named, bad, strict=True):
        assert said.startswith(begins)


def test_bad_lines_of_plain_text_are_left_out(tmp_path, monkeypatch):
    content = "été 1\n".encode() + b"caf\xe9 and more \xff\n" + "🦊 3\n".encode() + b"end \xf0\x9f"
    for name in ("a.txt", "a.txt.gz"):
        found, named = left_out(tmp_path / name, content)
        assert found == ["été 1\n🦊 3\nend "]  # up to a character that is cut
        assert named[0].startswith(f"{name}:2: not UTF-8 text at byte 11")
        assert named[1].startswith(f"{name}:4: not UTF-8 text at byte 35")
        assert len(named) == 2
    monkeypatch.setattr(line_reader, "_READ_BYTES", 6)
    assert left_out(tmp_path / "a.txt", content)[0] == found


def test_bad_rows_are_left_out(tmp_path):
    content = b'text,n\none,1\ntwo,2,3\n"th"ree,3\nf\xffour,4\nfive,5\n"six,6\n'
    found, named = left_out(tmp_path / "a.csv", content)
    assert found == ["one", "five"]
    assert [each.split(": ")[:2] for each in named] == [
        ["a.csv:3", "3 cells in a row where the heading has 2"],
        ["a.csv:4", "not a row of a table (',' expected after '\"')"],
        ["a.csv:5", "not UTF-8 text"],
        ["a.csv:7", "not a row of a table (unexpected end of data)"],
    ]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.csv.gz"])
def test_the_rest_of_a_truncated_gzip_file_is_left_out(tmp_path, name):
    each = [f"line {i} {i * 7919 % 10007}" for i in range(40_000)]
    content = {"t": "\n".join(each), "j": lines(*each), "c": "\n".join(["text", *each])}[name[2]]
    whole = documents(write(tmp_path / name, content))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    skipped = Skipped(allowed=True)
    found = documents(tmp_path / name, on_bad=skipped.add)
    if name == "a.txt.gz":
        assert 0 < len(found[0]) < len(whole[0]) and whole[0].startswith(found[0])
    else:
        assert 0 < len(found) < len(whole) and whole[: len(found)] == found
    assert len(skipped.named) == 1 and "not a whole gzip file" in skipped.named[0]


def test_a_file_without_text_counts_once_and_only_ten_are_named(tmp_path):
    assert left_out(tmp_path / "a.txt", b" \n") == ([], ["a.txt is empty"])
    found, named = left_out(tmp_path / "a.jsonl", b"{\n{\n")
    assert (found, len(named)) == ([], 2)  # not a third time for the file
    skipped = Skipped(allowed=True)
    documents(write(tmp_path / "b.jsonl", "{\n" * 30), on_bad=skipped.add)
    assert (len(skipped.named), skipped.counts.total()) == (10, 30)


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "flipped"])
def test_damaged_gzip_is_named(tmp_path, damage):
    packed = bytearray(gzip.compress(bytes(range(97, 123)) * 1000))
    if damage == "truncated":
        packed = packed[:-12]
    elif damage == "flipped":
        packed[20:30] = b"\xff" * 10
    else:
        packed = bytearray(b"plain text")
    path = tmp_path / "a.txt.gz"
    path.write_bytes(packed)
    with pytest.raises(KrakenError, match=r"a\.txt\.gz is not a whole gzip file"):
        documents(path)


def test_missing_file_and_directory_are_refused_before_reading(tmp_path):
    with pytest.raises(KrakenError, match=r"gone\.txt does not exist"):
        check_files([tmp_path / "gone.txt"])
    with pytest.raises(KrakenError, match=r"gone\.txt does not exist"):
        documents(tmp_path / "gone.txt")
    with pytest.raises(KrakenError, match="is a directory"):
        check_files([tmp_path])
    with pytest.raises(KrakenError, match="no text files"):
        check_files([])
    empty = write(tmp_path / "empty.txt", b"")
    with pytest.raises(KrakenError, match=r"empty\.txt is empty"):
        check_files([write(tmp_path / "a.txt", "a"), empty])
