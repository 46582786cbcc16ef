"""A real model, imported: greedy answers in a chat are Transformers', on any number of ranks."""

import json
from pathlib import Path

import pytest
import torch

import naive
import tiny
from krakenlm.data.chat import Chat
from krakenlm.engine.generation import Ranks, Step, generate_tokens, prepare
from krakenlm.engine.options import EngineOptions
from smollm2_files import QUESTIONS, SYSTEM, file_or_skip

pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.usefixtures("own_signals")]

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def gguf() -> Path:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    return file_or_skip("smollm2.gguf")


@pytest.fixture(scope="module")
def wanted(gguf) -> list[tuple[list[int], list[int]]]:
    """Of each question Transformers' prompt and answer, as tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    answers = []
    for question in QUESTIONS:
        conversation = Chat(SYSTEM).messages(question)
        prompt = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        answer = naive.greedy(model, prompt, NEW_TOKENS)
        end = tokenizer.eos_token_id
        answers.append((prompt, answer[: answer.index(end) + 1] if end in answer else answer))
    return answers


@pytest.fixture(scope="module")
def converted(gguf, tmp_path_factory) -> Path:
    from krakenlm.cli.main import main

    folder = tmp_path_factory.mktemp("smollm2") / "model"
    main(["convert", str(gguf), str(folder)])
    return folder


@pytest.mark.parametrize(
    ("devices", "options"),
    [
        (1, {}),
        (2, {}),  # three key and value heads: one rank has two of them
        (2, {"placement": (1, 2), "prefill_chunks": 2}),
        (3, {}),
        (3, {"prefill_chunks": 2, "transport": "sockets"}),
    ],
    ids=str,
)
def test_greedy_answers_are_those_of_transformers(converted, wanted, devices, options):
    request, _ = prepare(
        converted,
        QUESTIONS,
        max_new_tokens=NEW_TOKENS,
        chat=Chat(SYSTEM),
        options=EngineOptions(**options),
    )
    assert request.prompts == [prompt for prompt, _ in wanted]
    steps: list[Step] = []
    generate_tokens(request, Ranks(devices, "cpu"), steps.append)
    for row, (_, answer) in enumerate(wanted):
        assert [step.tokens[row] for step in steps][: len(answer)] == answer


def test_the_command_says_the_same(converted, wanted, capfd):
    from transformers import AutoTokenizer

    asked = ("--chat", "--system", SYSTEM, "--prompt", QUESTIONS[1], "--devices", 3, "--json", "-")
    outcome = tiny.call(capfd, "generate", converted, *asked, "--max-new-tokens", NEW_TOKENS)
    (line,) = outcome.out.splitlines()
    said = AutoTokenizer.from_pretrained(converted).decode(wanted[1][1], skip_special_tokens=True)
    assert outcome.code == 0 and json.loads(line)["answer"] == said
