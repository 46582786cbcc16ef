"""A real model under vLLM, on as many ranks as it has key and value heads."""

import offline

import naive
from krakenlm.data.chat import Chat
from krakenlm.engine.generation import prepare
from krakenlm.eval.model import load_causal_lm
from smollm2_files import QUESTIONS, SYSTEM, file_or_skip

NEW_TOKENS = 24


def test_greedy_answers_are_those_of_transformers(tmp_path):
    folder = file_or_skip("smollm2")
    request, _ = prepare(folder, QUESTIONS, chat=Chat(SYSTEM))
    model = load_causal_lm(folder)
    wanted = [naive.greedy(model, prompt, NEW_TOKENS) for prompt in request.prompts]
    found = offline.generate(
        folder, request.prompts, tmp_path, new_tokens=NEW_TOKENS, ranks=3, options={}
    )
    assert found["tokens"] == found["tokens_alone"] == wanted
