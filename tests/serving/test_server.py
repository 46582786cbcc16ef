"""`krakenlm serve`: an OpenAI client gets answers, wrong requests get errors, a dead rank shows."""

import contextlib
import http.client
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from served import CONTEXT, Server, save_model

import naive
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.eval.model import load_causal_lm

SUBLAYERS = 4
"""Another number than the checkpoint's own."""


@pytest.fixture(scope="module")
def server(tmp_path_factory, tokenizer):
    running = start(tmp_path_factory, tokenizer)
    yield running
    running.stop()


def start(tmp_path_factory, tokenizer) -> Server:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_model(folder, tokenizer, wiring="shared", initializer_range=0.3)
    flags = [
        "--devices",
        "2",
        "--sublayers",
        f"{SUBLAYERS}",
        "--enforce-eager",
        "--max-num-seqs",
        "16",
    ]
    running = Server("serve", folder, flags, folder.parent / "log.txt")
    running.folder = folder
    return running


def completion(**values) -> str:
    return json.dumps({"model": "tiny", "prompt": "Document", "max_tokens": 8, **values})


def test_it_says_where_it_is_and_the_command_it_names_works(server):
    assert any(server.url in line for line in server.said)
    curl = server.said[-1]
    answer = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=120)
    assert "data: [DONE]" in answer.stdout


def test_an_openai_client_streams_completions_and_chats(server):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    pieces = client.completions.create(
        model="tiny", prompt="Document", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces)
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Document"}],
        max_tokens=8,
        stream=True,
    )
    assert len(list(chat)) > 1


def test_it_answers_with_the_sublayers_that_were_asked_for(server):
    tokenizer = load_tokenizer(server.folder)
    prompt = tokenizer.encode("Document 12: the end of ", add_special_tokens=False)

    def greedy(sublayers: int) -> list[int]:
        return naive.greedy(load_causal_lm(server.folder, sublayers=sublayers), prompt, 24)

    asked = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    body = completion(**asked, return_token_ids=True)
    status, answer = server.post("/v1/completions", body)
    assert status == 200, answer
    wanted = greedy(SUBLAYERS)
    assert wanted != greedy(2)
    assert json.loads(answer)["choices"][0]["token_ids"] == wanted


def test_many_requests_at_a_time_are_answered_as_one_by_one(server):
    bodies = [
        completion(prompt="Document " * (1 + i % 9), temperature=0, ignore_eos=True)
        for i in range(16)
    ]

    def text(body: str) -> str:
        status, answer = server.post("/v1/completions", body)
        assert status == 200, answer
        return json.loads(answer)["choices"][0]["text"]

    alone = [text(body) for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text, bodies)) == alone


@pytest.mark.parametrize(
    "body",
    [
        completion(prompt="word " * 2 * CONTEXT),
        completion(temperature=float("nan")),
        completion(model="nobody"),
        completion(max_tokens=-1),
        "{",
    ],
    ids=["too long", "NaN temperature", "unknown model", "negative length", "not JSON"],
)
def test_wrong_requests_get_an_error_and_the_server_lives_on(server, body):
    status, answer = server.post("/v1/completions", body)
    assert 400 <= status < 500, answer
    assert server.health() == 200
    assert server.post("/v1/completions", completion())[0] == 200


def ranks_of(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    ranks = [child for child in children if "Worker" in " ".join(child.cmdline())]
    assert len(ranks) == 2, [child.cmdline() for child in children]
    return ranks


def seconds_to_fail(server: Server) -> float:
    """Until the server no longer calls itself healthy; a minute at most."""
    begun = time.monotonic()
    while server.health() == 200:
        assert time.monotonic() - begun < 60
        time.sleep(0.5)
    return time.monotonic() - begun


def test_a_killed_rank_makes_health_fail(server, figure):
    ranks_of(server)[1].kill()
    seconds = seconds_to_fail(server)
    figure("kill -9 of a rank under vLLM", f"/health fails after {seconds:.1f} s", "30 s")
    assert seconds < 30


def test_a_stopped_rank_makes_health_fail_within_30_seconds(tmp_path_factory, tokenizer, figure):
    server = start(tmp_path_factory, tokenizer)
    try:
        ranks = ranks_of(server)
        ranks[1].suspend()
        with ThreadPoolExecutor(1) as pool:  # somebody waits for an answer meanwhile
            asked = pool.submit(server.post, "/v1/completions", completion())
            seconds = seconds_to_fail(server)
            figure("SIGSTOP of a rank under vLLM", f"/health fails after {seconds:.1f} s", "30 s")
            assert seconds < 30
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _ = asked.result(60)
                assert status >= 500
        _, alive = psutil.wait_procs(ranks, timeout=20)
        assert not alive
    finally:
        server.stop()
    log = server.said_later + (server.folder.parent / "log.txt").read_text()
    assert "has given no sign of life for 15 s while serving" in log
