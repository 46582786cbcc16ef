"""Training on a CUDA device; run with ``pytest -m gpu`` where there is one."""

import json

import pytest
import torch

import tiny
from krakenlm.train.meter import peak_flops
from krakenlm.train.recipe import read_recipe
from krakenlm.train.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_run_in_bfloat16_learns_and_knows_its_mfu(tmp_path, tiny_data):
    text = tiny.recipe_text(
        tiny_data, tmp_path / "run", steps=20, device="cuda", precision="bfloat16", save_every=10
    )
    (tmp_path / "recipe.toml").write_text(text)
    run = train(read_recipe(tmp_path / "recipe.toml", lambda data: tiny.VOCABULARY))
    history = json.loads(run.history.read_text())
    losses = [entry["loss"] for entry in history["training"]]
    assert losses[-1] < losses[0] - 0.5
    assert history["speed"]["tokens_per_second"] > 0
    known = peak_flops(torch.cuda.get_device_name()) is not None
    assert ("mfu" in history["speed"]) == known
