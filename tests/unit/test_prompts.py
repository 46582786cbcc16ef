"""Prompts from a file: which they are, and what is refused."""

import io
import json
import sys

import pytest

from krakenlm.data.prompts import Prompt, read_prompts
from krakenlm.errors import KrakenError


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        (b"one\ntwo", [("one", 1), ("two", 2)]),
        (b"\xef\xbb\xbfone\n", [("one", 1)]),
        (b"one\r\n\r\n \t\r\n two \r\n", [("one", 1), (" two ", 4)]),
        ("a\u2028b\x0cc\n😀\n".encode(), [("a\u2028b\x0cc", 1), ("😀", 2)]),
        (b'{"prompt": "one"}\n', [('{"prompt": "one"}', 1)]),
    ],
)
def test_a_file_has_one_prompt_a_line(tmp_path, monkeypatch, data, prompts):
    (tmp_path / "prompts.txt").write_bytes(data)
    file = str(tmp_path / "prompts.txt")
    assert read_prompts(file) == [Prompt(text, file, line) for text, line in prompts]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read_prompts("-") == [Prompt(text, "standard input", line) for text, line in prompts]


def test_json_lines_have_a_prompt_or_a_text(tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a\nb", "text": "no"}, {"text": " c ", "id": 7}, {"prompt": ""}]
    written = "\n\n".join(json.dumps(line) for line in lines)
    file.write_bytes(b"\xef\xbb\xbf" + written.encode())
    found = [(prompt.text, prompt.name) for prompt in read_prompts(str(file))]
    assert found == [("a\nb", f"{file}:1"), (" c ", f"{file}:3"), ("", f"{file}:5")]


@pytest.mark.parametrize(
    ("name", "data", "essential"),
    [
        ("p.txt", b"", "holds no prompt"),
        ("p.txt", b"\xef\xbb\xbf \n\n", "holds no prompt"),
        ("p.txt", b"one\n\xff\n", "not UTF-8 text at byte 4"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "p.jsonl:2: not valid JSON"),
        ("p.jsonl", b'\n["a"]\n', 'p.jsonl:2: no prompt: write each line as {"prompt": "..."}'),
        ("p.jsonl", b'{"question": "a"}\n', "p.jsonl:1: no prompt"),
        ("p.jsonl", b'{"prompt": 3, "text": "a"}\n', "p.jsonl:1: no prompt"),
        ("p.jsonl", b'{"prompt": "\\ud83d"}\n', "p.jsonl:1: half of a surrogate pair"),
    ],
)
def test_what_holds_no_prompts_is_refused_with_its_place(tmp_path, name, data, essential):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(KrakenError) as refused:
        read_prompts(str(tmp_path / name))
    assert essential in str(refused.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(KrakenError, match=r"none\.txt does not exist"):
        read_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(KrakenError, match=r"cannot read .*: Is a directory"):
        read_prompts(str(tmp_path))
