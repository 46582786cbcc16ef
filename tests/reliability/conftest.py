"""What tests of disturbed commands share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from running import LONG, Running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def run(*arguments: object, **options: Any) -> Running:
        started.append(Running(tmp_path, *arguments, **options))
        return started[-1]

    yield run
    for each in started:
        each.stop()


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A model that can go on for long."""
    folder = tmp_path_factory.mktemp("long-model") / "model"
    torch.manual_seed(0)
    config = tiny.model_config(max_position_embeddings=LONG + 100, initializer_range=0.3)
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)
    load_tokenizer(tiny_data).save_pretrained(folder)
    return folder
