"""`krakenlm hf-serve`: the server of Transformers answers with our models."""

import json
import subprocess
import time

import pytest
from served import Server, save_model

import naive
from krakenlm.errors import KrakenError
from krakenlm.serving.hf_serve import serve

PLAIN_CHAT = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    made = tmp_path_factory.mktemp("served") / "tiny"
    save_model(made, tokenizer)
    (made / "chat_template.jinja").write_text(PLAIN_CHAT)
    return made


@pytest.fixture(scope="module")
def server(folder):
    running = Server("hf-serve", folder, ["--device", "cpu"], folder.parent / "log.txt")
    for _ in range(120):
        if running.health() == 200:
            break
        time.sleep(1)
    yield running
    running.stop()


def test_the_command_it_names_works(server):
    answer = subprocess.run(
        server.said[-1], shell=True, capture_output=True, text=True, timeout=120
    )
    assert '"finish_reason":"length"' in answer.stdout


def test_it_answers_as_generate_does(server, folder):
    from krakenlm.data.tokenizer import load_tokenizer
    from krakenlm.eval.model import load_causal_lm

    body = {"model": str(folder), "prompt": "Document", "max_tokens": 8, "temperature": 0}
    status, answer = server.post("/v1/completions", json.dumps(body))
    assert status == 200, answer
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("Document", return_tensors="pt").input_ids
    tokens = naive.greedy(load_causal_lm(folder), ids[0].tolist(), 8)
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert json.loads(answer)["choices"][0]["text"] == text


def test_an_openai_client_chats(server, folder):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    chat = client.chat.completions.create(
        model=str(folder),
        messages=[{"role": "user", "content": "Document"}],
        max_tokens=8,
        stream=True,
    )
    assert len(list(chat)) > 1


def test_another_model_is_refused_and_the_server_lives_on(server):
    body = json.dumps({"model": "nobody", "prompt": "Document"})
    status, _ = server.post("/v1/completions", body)
    assert 400 <= status < 500
    assert server.health() == 200


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(KrakenError, match=r"config\.json"):
        serve(tmp_path, [])
