"""Thousands of requests, one after another, over two ranks: none lost, none wrong, memory flat.

``GENERATIONS`` says how many; `make test-reliability` says 5,000.
"""

import os
import random
from pathlib import Path

import psutil
import pytest
import torch

from krakenlm.engine.engine import Engine
from krakenlm.engine.sampling import Sampling
from krakenlm.model.checkpoint import read_config
from krakenlm.ranks.launch import Rank, launch

pytestmark = [pytest.mark.reliability, pytest.mark.dist]

GENERATIONS = int(os.environ.get("GENERATIONS", "200"))
MOST_GROWTH = 0.01 if GENERATIONS >= 1000 else 0.05
"""Of a rank's memory, behind the first fifth of the requests; a short run is still warming up."""


def request(number: int, context: int, vocabulary: int) -> tuple[list[list[int]], int, Sampling]:
    """Of lengths that are drawn: one prompt or several, greedy or not."""
    chosen = random.Random(number)
    prompts = [
        [chosen.randrange(vocabulary) for _ in range(chosen.randint(1, context // 2))]
        for _ in range(chosen.choice([1, 1, 2, 3]))
    ]
    sampling = Sampling(temperature=chosen.choice([0.0, 1.0]), seed=number)
    return prompts, chosen.randint(1, 4), sampling


def answer(engine: Engine, number: int) -> list[list[int]]:
    config = engine.config
    prompts, count, sampling = request(number, config.max_position_embeddings, config.vocab_size)
    steps = list(engine.generate(prompts, max_new_tokens=count, sampling=sampling))
    return [list(row) for row in zip(*steps, strict=True)]


def serve(rank: Rank, model: Path, count: int) -> None:
    engine = Engine.load(model, rank, torch.float32)
    memory = psutil.Process()
    before = 0
    for number in range(count):
        if number == count // 5:
            before = memory.memory_info().rss
        found = answer(engine, number)
        if rank.index == 0:
            rank.emit(("answer", number, found))
    rank.emit(("memory", rank.index, memory.memory_info().rss / before - 1))


def test_answers_are_those_of_one_process_and_memory_stays_what_it_is(tiny_model, figure):
    heard: list[tuple] = []
    launch(serve, [tiny_model, GENERATIONS], devices=2, on_message=heard.append, device_type="cpu")
    answers = [message[1:] for message in heard if message[0] == "answer"]
    assert [number for number, _ in answers] == list(range(GENERATIONS))
    alone = Engine.load(tiny_model, Rank(0, 1, torch.device("cpu"), print), torch.float32)
    assert read_config(tiny_model) == alone.config
    wrong = [number for number, found in answers if found != answer(alone, number)]
    assert wrong == []
    growth = {rank: part for kind, rank, part in heard if kind == "memory"}
    assert growth.keys() == {0, 1}
    figure(
        f"{GENERATIONS:,} generations of random lengths over two ranks",
        f"none lost, doubled or wrong; memory of a rank {max(growth.values()):+.2%}",
        "5,000 generations, under 1 %",
    )
    assert max(growth.values()) < MOST_GROWTH
