"""Thousands of requests to two ranks under vLLM, from clients of which some hang up in mid-stream.

``REQUESTS`` says how many; `make test-reliability` says 2,000.
"""

import http.client
import json
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import Server, save_model

pytestmark = pytest.mark.reliability

REQUESTS = int(os.environ.get("REQUESTS", "120"))
AT_A_TIME = 64
KINDS = 40
"""Different prompts, each of which is also asked alone, before all others."""


@pytest.fixture(scope="module")
def server(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("many-clients") / "tiny"
    save_model(folder, tokenizer, wiring="shared", initializer_range=0.3)
    flags = ["--devices", "2", "--enforce-eager", "--max-num-seqs", str(AT_A_TIME)]
    running = Server("serve", folder, flags, folder.parent / "log.txt")
    yield running
    running.stop()


def body(kind: int, *, stream: bool = False) -> str:
    """Prompts of different lengths and words, so that hardly two have one answer."""
    chosen = random.Random(kind)
    words = " ".join(str(chosen.randrange(1000)) for _ in range(1 + kind % 5))
    asked = {"prompt": f"Document {words}", "max_tokens": 4 + kind % 9, "ignore_eos": True}
    told = {"temperature": 0, "stream": stream, "return_token_ids": True}
    return json.dumps({"model": "tiny", **asked, **told})


def whole_answer(server: Server, kind: int) -> list[int]:
    status, answer = server.post("/v1/completions", body(kind))
    assert status == 200, answer
    return json.loads(answer)["choices"][0]["token_ids"]


def hang_up(server: Server, kind: int) -> None:
    """Ask for a stream, hear its beginning, and close the connection."""
    host = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", body(kind, stream=True), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.read(6) == b"data: "
    connection.close()


def under_way(server: Server) -> float:
    """Requests that the engine has not ended, by its own count."""
    status, text = server.get("/metrics")
    assert status == 200
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    lines = [line for line in text.splitlines() if line.split("{")[0] in names]
    assert len(lines) >= 2
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_none_is_lost_and_none_is_another_ones(server, figure):
    alone = [whole_answer(server, kind) for kind in range(KINDS)]
    assert len(set(map(tuple, alone))) > KINDS * 3 // 4  # a mix-up would be seen
    hangs_up = [number % 5 == 4 for number in range(REQUESTS)]

    def ask(number: int) -> str:
        kind = random.Random(number).randrange(KINDS)
        if hangs_up[number]:
            hang_up(server, kind)
            return "hung up"
        return "right" if whole_answer(server, kind) == alone[kind] else "wrong"

    begun = time.monotonic()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ends = Counter(pool.map(ask, range(REQUESTS)))
    seconds = time.monotonic() - begun
    assert ends == {"hung up": sum(hangs_up), "right": REQUESTS - sum(hangs_up)}
    end = time.monotonic() + 30
    while under_way(server):
        assert time.monotonic() < end, "what nobody waits for goes on"
        time.sleep(0.2)
    assert server.health() == 200
    assert [whole_answer(server, kind) for kind in range(KINDS)] == alone
    figure(
        f"{REQUESTS:,} requests to vLLM on two ranks, {AT_A_TIME} at a time",
        f"{ends['right']:,} answered right, {ends['hung up']:,} clients hung up in mid-stream, "
        f"none lost or mixed up, nothing left running; {seconds:.0f} s",
        "2,000 requests, none lost, none mixed up",
    )
