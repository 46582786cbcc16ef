import gzip
import json
from itertools import pairwise

import pytest

from krakenlm.data import text
from krakenlm.data.text import check_files, pieces, utf8_length
from krakenlm.errors import KrakenError


def documents(*paths):
    found, current = [], []
    for piece in pieces(paths):
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
    monkeypatch.setattr(text, "_READ_BYTES", 7)  # cuts two- and four-byte characters
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
    monkeypatch.setattr(text, "_READ_BYTES", 5)
    path = write(tmp_path / "a.txt", "ééééééé".encode() + b"\xff")
    with pytest.raises(KrakenError, match="byte 14:"):
        documents(path)


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
