"""``--check``: weights that are not finite are found, wherever they stand."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from krakenlm.errors import KrakenError
from krakenlm.model import soundness
from krakenlm.model.soundness import check_weights


@pytest.fixture
def model(tmp_path, tiny_model):
    return shutil.copytree(tiny_model, tmp_path / "model")


def spoil(model, **values):
    """One value each of the last row of so many tensors."""
    weights = load_file(model / "model.safetensors")
    names = [name for name in weights if weights[name].dim() > 1][: len(values)]
    for name, value in zip(names, values.values(), strict=True):
        weights[name].view(-1)[-1] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return names


@pytest.mark.parametrize("block", [1, 100, 1 << 24])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found(model, monkeypatch, block, value):
    monkeypatch.setattr(soundness, "_BLOCK_VALUES", block)
    check_weights(model)
    (name,) = spoil(model, one=value)
    with pytest.raises(KrakenError, match=rf"NaN or infinite, in {name} \(1 of them\): copy"):
        check_weights(model)


def test_all_number_formats_and_shapes_are_read(tmp_path):
    tensors = {f"{dtype}": torch.ones(3, 2).to(dtype) for dtype in (torch.float16, torch.bfloat16)}
    tensors |= {"scalar": torch.tensor(1.0), "empty": torch.ones(0, 4), "ids": torch.arange(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    check_weights(tmp_path)


def test_only_the_first_tensors_are_named(model):
    names = spoil(model, a=float("nan"), b=float("nan"), c=float("nan"), d=float("nan"))
    with pytest.raises(KrakenError, match=r" and 1 more: ") as refusal:
        check_weights(model)
    assert "\n" not in str(refusal.value)
    assert sum(name in str(refusal.value) for name in names) == 3


@pytest.mark.usefixtures("own_signals")
def test_commands_check_before_they_do_anything(model, tmp_path, capfd, tiny_data):
    spoil(model, one=float("nan"))
    commands = [
        ["generate", str(model), "--prompt", "a", "--check"],
        ["perplexity", str(model), str(tiny_data), "--check"],
        ["eval", str(model), "--check"],
        ["serve", str(model), "--check"],
        ["hf-serve", str(model), "--check"],
        ["convert", str(model), str(tmp_path / "out"), "--wiring", "kraken", "--check"],
        ["convert", str(model), str(tmp_path / "out"), "--to", "transformers", "--check"],
    ]
    for command in commands:
        outcome = tiny.call(capfd, *command)
        assert outcome.code == 2, command
        assert f"{model} has weights that are NaN or infinite" in outcome.err, command
        assert outcome.out == ""
    assert not (tmp_path / "out").exists()
