"""Requests that cannot be answered, to two ranks: refused at once, and the next one is answered."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from krakenlm.engine.engine import Engine
from krakenlm.engine.sampling import Sampling
from krakenlm.engine.session import Session
from krakenlm.errors import RequestError
from krakenlm.ranks.launch import Rank, launch

pytestmark = [pytest.mark.reliability, pytest.mark.dist]

GOOD = ([[5, 6], [7]], 4, {})
BAD = {
    "no prompt": ([], 4, {}),
    "an empty prompt": ([[5], []], 4, {}),
    "a prompt longer than the context": ([[5] * 33], 1, {}),
    "a prompt and new tokens beyond the context": ([[5] * 30], 4, {}),
    "a million new tokens": ([[5]], 1_000_000, {}),
    "no new tokens": ([[5]], 0, {}),
    "a token outside the vocabulary": ([[5, 1 << 40]], 4, {}),
    "a negative token": ([[-1]], 4, {}),
    "a token that is no number": ([["5"]], 4, {}),
    "a temperature of NaN": ([[5]], 4, {"temperature": math.nan}),
    "a negative temperature": ([[5]], 4, {"temperature": -1.0}),
    "top_p 0": ([[5]], 4, {"top_p": 0.0}),
    "top_p above 1": ([[5]], 4, {"top_p": 1.5}),
}


def answer(engine: Engine, prompts: list, new: int, settings: dict) -> list:
    sampling = Sampling(**settings)
    return list(engine.generate(prompts, max_new_tokens=new, sampling=sampling))


def serve(rank: Rank, model: Path) -> None:
    engine = Engine.load(model, rank, torch.float32)
    first = answer(engine, *GOOD)
    begun: list[Session] = []
    prefill = Session.prefill

    def counted(session: Session, *arguments: Any) -> torch.Tensor:
        begun.append(session)
        return prefill(session, *arguments)

    Session.prefill = counted  # type: ignore[method-assign]
    for name, request in BAD.items():
        begun.clear()
        with pytest.raises(RequestError) as refused:
            answer(engine, *request)
        assert isinstance(refused.value, ValueError) and begun == []
        assert answer(engine, *GOOD) == first
        rank.emit((rank.index, name))


def test_bad_requests_are_refused_and_the_next_is_answered(tiny_model, figure):
    heard: list[tuple] = []
    launch(serve, [tiny_model], devices=2, on_message=heard.append, device_type="cpu")
    for rank in (0, 1):
        said = [message for message in heard if message[0] == rank]
        assert [name for _, name in said] == list(BAD)
    figure(
        "requests that cannot be answered, to two ranks",
        f"{len(BAD)} kinds refused with a ValueError on both, the next one answered as before",
        "refused before any rank has begun; the next is answered",
    )


@pytest.mark.usefixtures("own_signals")
def test_a_stop_text_that_never_comes_and_bytes_that_are_no_text(tiny_model, tmp_path, capfd):
    two = ("generate", tiny_model, "--devices", 2, "--max-new-tokens", 20, "--dtype", "float32")
    free = tiny.call(capfd, *two, "--prompt", "Line")
    never = tiny.call(capfd, *two, "--prompt", "Line", "--stop", "a text that never comes")
    assert (free.code, never.code) == (0, 0) and never.out == free.out
    (tmp_path / "prompts.txt").write_bytes(b"Line\n\xff\xfe\n")
    refused = tiny.call(capfd, *two, "--prompt-file", tmp_path / "prompts.txt")
    assert refused.code == 2 and refused.out == ""
    (said,) = refused.err.splitlines()
    assert "prompts.txt" in said and "UTF-8" in said
