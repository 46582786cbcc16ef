"""``krakenlm generate`` and ``krakenlm.generate``: several prompts, streams, and stop texts."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import krakenlm
import tiny
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.engine.engine import Engine
from krakenlm.engine.generation import prepare
from krakenlm.engine.sampling import Sampling
from krakenlm.errors import KrakenError
from krakenlm.ranks.launch import Rank

pytestmark = pytest.mark.usefixtures("own_signals")

PROMPTS = ["Line 1", "end of", "The", "Line 2: ", "word"]
NEW = 10
DRAWN = Sampling(temperature=1.0, seed=3)


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch) -> Callable[..., tiny.Outcome]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: tiny.call(capfd, "generate", *arguments)


def whole(model: Path, prompts=PROMPTS, **options) -> list[str]:
    return krakenlm.generate(model, prompts, max_new_tokens=NEW, **options)


def streamed(model: Path, **options) -> list[str]:
    pieces = list(krakenlm.generate(model, PROMPTS, max_new_tokens=NEW, stream=True, **options))
    assert all(len(step) == len(PROMPTS) for step in pieces)
    return ["".join(of_one) for of_one in zip(*pieces, strict=True)]


def test_a_streamed_answer_is_the_whole_one_and_its_tokens_decode(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    request, _ = prepare(tiny_model, PROMPTS, max_new_tokens=NEW)
    engine = Engine.load(tiny_model, Rank(0, 1, torch.device("cpu"), print), torch.float32)
    steps = engine.generate(request.prompts, max_new_tokens=NEW)
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in zip(*steps, strict=True)]
    assert whole(tiny_model) == streamed(tiny_model) == expected


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
def test_answers_do_not_depend_on_how_many_are_given_at_once(tiny_model, sampling):
    together = whole(tiny_model, sampling=sampling)
    for size in (1, 2, 5, 99):
        assert whole(tiny_model, sampling=sampling, batch_size=size) == together
    assert streamed(tiny_model, sampling=sampling, batch_size=2) == together


def test_the_same_prompt_in_several_batches_is_not_answered_alike_where_tokens_are_drawn(
    tiny_model,
):
    assert len(set(whole(tiny_model, ["The"] * 6, sampling=DRAWN, batch_size=2))) > 1


def test_a_stop_text_ends_its_answer_and_that_ends_the_work(tiny_model):
    free = whole(tiny_model, sampling=DRAWN)
    stop = free[0][2:4]
    ended = [text.partition(stop)[0] for text in free]
    assert ended[0] == free[0][:2]
    assert whole(tiny_model, sampling=DRAWN, stop=stop) == ended
    assert streamed(tiny_model, sampling=DRAWN, stop=[stop, "never"]) == ended
    alone = krakenlm.generate(
        tiny_model, PROMPTS[:1], max_new_tokens=NEW, sampling=DRAWN, stop=stop, stream=True
    )
    assert len(list(alone)) < NEW


def test_an_engine_ends_where_it_is_told_that_texts_have_ended(tiny_model):
    engine = Engine.load(tiny_model, Rank(0, 1, torch.device("cpu"), print), torch.float32)
    free = list(engine.generate([[1], [2, 3]], max_new_tokens=NEW))
    asked: list[list[int]] = []

    def ended(tokens: list[int]) -> list[bool]:
        asked.append(tokens)
        return [len(asked) == 2, len(asked) == 4]

    steps = list(engine.generate([[1], [2, 3]], max_new_tokens=NEW, ended=ended))
    assert asked == steps and len(steps) == 4
    assert [row[1] for row in steps] == [row[1] for row in free[:4]]
    first = [row[0] for row in free]
    assert [row[0] for row in steps] == [first[0], first[1], first[1], first[1]]


def test_text_is_written_prompt_by_prompt_with_its_place(cli, tiny_model, tmp_path):
    (tmp_path / "p.txt").write_text("\N{BYTE ORDER MARK}Line 1\n\nend of\nThe\n", "utf-8")
    prompts = ["Line 1", "end of", "The"]
    answers = whole(tiny_model, prompts)
    options = ("--max-new-tokens", NEW, "--batch-size", 2)
    outcome = cli(tiny_model, "--prompt-file", "p.txt", *options, "--stats")
    assert outcome.code == 0, outcome.err
    expected = [
        f"--- p.txt:{line}\n{prompt}{answer}\n"
        for line, prompt, answer in zip(
            (1, 3, 4), ("Line 1", "end of", "The"), answers, strict=True
        )
    ]
    assert outcome.out == "".join(expected)
    last = outcome.err.splitlines()[-1]
    assert re.fullmatch(rf"3 prompts: {3 * NEW} tokens in \d+\.\d s, \d+\.\d a second", last)


@pytest.mark.parametrize("file", ["answers.jsonl", "-"])
def test_json_says_what_was_asked_and_answered(cli, tiny_model, tmp_path, file):
    prompts = [{"prompt": "Line 1"}, {"text": "a\nb"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    answers = whole(tiny_model, ["Line 1", "a\nb"])
    stop = answers[0][4:6]
    options = ("--max-new-tokens", NEW, "--json", file)
    outcome = cli(tiny_model, "--prompt-file", "p.jsonl", *options, "--stop", stop)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("--- p.jsonl:1\nLine 1") == (file != "-")
    lines = (outcome.out if file == "-" else (tmp_path / file).read_text("utf-8")).splitlines()
    first, second = map(json.loads, lines)
    assert 0 < first.pop("tokens") < NEW
    assert first == {
        "line": 1, "prompt": "Line 1", "answer": answers[0][:4], "finish_reason": "stop"
    }  # fmt: skip
    assert second == {
        "line": 2, "prompt": "a\nb", "answer": answers[1], "tokens": NEW, "finish_reason": "length"
    }  # fmt: skip


def test_a_single_prompt_as_json(cli, tiny_model):
    outcome = cli(tiny_model, "--prompt", "The", "--max-new-tokens", 2, "--json", "-")
    entry = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert entry["prompt"] == "The" and "line" not in entry


@pytest.mark.parametrize(
    ("arguments", "essentials"),
    [
        ([], ["--prompt / --prompt-file", "give one of the two", "see `krakenlm --help`"]),
        (["--prompt", "a", "--prompt-file", "p.txt"], ["give one of the two"]),
        (["--prompt-file", "none.txt"], ["none.txt does not exist"]),
        (["--prompt-file", "p.txt", "--batch-size", "0"], ["--batch-size 0: needs 1 or more"]),
        (["--prompt-file", "p.txt", "--stop", ""], ["--stop ''", "at least one character"]),
        (["--prompt-file", "p.txt", "--max-new-tokens", "20"], ["p.txt:2 has", "holds 32"]),
        (["--prompt-file", "p.txt", "--json", "p.txt/a"], ["cannot write p.txt/a"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_answered_is_refused(cli, tiny_model, tmp_path, arguments, essentials):
    (tmp_path / "p.txt").write_text(f"a\n{'word ' * 4}\n")
    outcome = cli(tiny_model, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.complaints
    for essential in essentials:
        assert essential in line
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


def test_a_long_prompt_that_makes_all_answers_short_is_named(cli, tiny_model, tmp_path):
    (tmp_path / "p.txt").write_text(f"a\n{'word ' * 4}\n")
    outcome = cli(tiny_model, "--prompt-file", "p.txt")
    assert outcome.code == 0
    (note,) = (line for line in outcome.err.splitlines() if line.startswith("note:"))
    assert re.fullmatch(
        r"note: answers have \d+ tokens at most, which is what the context leaves after the "
        r"longest prompt \(p\.txt:2\)",
        note,
    )


def test_standard_input_is_not_shared_among_the_processes_of_torchrun(cli, tiny_model, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = cli(tiny_model, "--prompt-file", "-")
    assert outcome.code == 2
    assert "--prompt-file -: the processes of torchrun cannot all read" in outcome.err


def test_an_empty_stop_text_is_refused(tiny_model):
    with pytest.raises(KrakenError, match="--stop ''"):
        whole(tiny_model, stop="")
