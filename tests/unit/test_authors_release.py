"""Checkpoints of the authors' release, converted, compute what their formulas say."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from authors_checkpoint import Checkpoint, make_checkpoint
from krakenlm.cli.convert import convert as convert_command
from krakenlm.config import count_parameters
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.integrations.authors_release import convert


def authors_logits(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """Section 2 of the design notes on the authors' names, one sequence."""
    args = checkpoint["model_args"]
    state = {name.removeprefix("_orig_mod."): t for name, t in checkpoint["model"].items()}
    sublayers = range(args["n_head"] // args["n_heads_in_split"])

    def linear(name: str, x: Tensor) -> Tensor:
        return nn.functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(
            x, (8,), state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5
        )

    def attn(name: str, x: Tensor) -> Tensor:
        q, k, v = (
            part.view(len(x), args["n_heads_in_split"], -1).transpose(0, 1)
            for part in linear(f"{name}.c_attn", x).split(8, dim=1)
        )
        o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(f"{name}.c_proj", o.transpose(0, 1).reshape(len(x), 8))

    def ffn(name: str, x: Tensor) -> Tensor:
        return linear(
            f"{name}.c_proj", nn.functional.gelu(linear(f"{name}.c_fc", x), approximate="tanh")
        )

    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][: len(ids)]
    y = [x for _ in sublayers]
    for layer in range(args["n_layer"]):
        before = list(y)
        for i in sublayers:
            block = f"transformer.h.{i}.{layer}"
            a = attn(f"{block}.attn", norm(f"{block}.ln_1", before[i]))
            others = [before[j] for j in sublayers if j != i and layer > 0]
            z = before[i] + a + sum(others)
            y[i] = before[i] + a + ffn(f"{block}.mlp", norm(f"{block}.ln_2", z))
    u = linear("transformer.conjunction", torch.cat(y, dim=1))
    return norm("transformer.ln_f", u) @ state["lm_head.weight"].T


def save(checkpoint: Any, folder: Path) -> Path:
    path = folder / "ckpt.pt"
    torch.save(checkpoint, path)
    return path


def assert_same_model(checkpoint: Checkpoint, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64)
    ids = torch.tensor([3, 0, 12, 7, 7, 1])
    torch.testing.assert_close(
        model(ids[None]).logits[0], authors_logits(checkpoint, ids), rtol=1e-9, atol=1e-9
    )


def assert_refused(checkpoint: Any, folder: Path, *essentials: str) -> None:
    with pytest.raises(KrakenError) as refusal:
        convert(save(checkpoint, folder), folder / "out")
    for essential in essentials:
        assert essential in str(refusal.value)
    assert [path.name for path in folder.iterdir()] == ["ckpt.pt"], "something was written"


# What converts


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_the_converted_model_computes_the_authors_formulas(n, bias, prefix, tmp_path) -> None:
    checkpoint = make_checkpoint(n=n, bias=bias, prefix=prefix)
    config = convert(save(checkpoint, tmp_path), tmp_path / "out")
    assert (config.num_sublayers, config.hidden_size, config.ffn_dim) == (n, 8, 24)
    assert config.tie_word_embeddings
    distinct = {t.data_ptr(): t.numel() for t in checkpoint["model"].values()}
    assert count_parameters(config) == sum(distinct.values())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert_same_model(checkpoint, tmp_path / "out")


def test_a_head_of_its_own_is_kept(tmp_path) -> None:
    checkpoint = make_checkpoint()
    checkpoint["model"]["lm_head.weight"] = torch.randn(13, 8, dtype=torch.float64)
    assert not convert(save(checkpoint, tmp_path), tmp_path / "out").tie_word_embeddings
    assert_same_model(checkpoint, tmp_path / "out")


def test_causal_mask_buffers_are_no_weights(tmp_path) -> None:
    checkpoint = make_checkpoint()
    checkpoint["model"]["transformer.h.1.2.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    convert(save(checkpoint, tmp_path), tmp_path / "out")
    assert_same_model(checkpoint, tmp_path / "out")


def test_the_command_says_what_it_wrote(tmp_path, capsys) -> None:
    path, out = save(make_checkpoint(n=3), tmp_path), tmp_path / "out"
    convert_command(path, out)
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert "N=3" in said
    assert "d=8" in said
    with pytest.raises(KrakenError, match="exists already"):
        convert_command(path, out)


@pytest.mark.parametrize(("vocabulary", "odd"), [(300, False), (427, False), (428, True)])
def test_the_tokenizer_comes_along_with_a_note_where_it_is_far_too_small(
    vocabulary, odd, tmp_path, tokenizer, capfd
) -> None:
    convert(save(make_checkpoint(vocabulary=vocabulary), tmp_path), tmp_path / "out", tokenizer)
    assert load_tokenizer(tmp_path / "out").get_vocab() == load_tokenizer(tokenizer).get_vocab()
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("note:")] == (
        [
            f"note: tokenizer {tokenizer} has ids up to 299 and the checkpoint a vocabulary of "
            "428, which is more than padding explains: check that the model was trained with this "
            "tokenizer"
        ]
        if odd
        else []
    )


# What is refused


@pytest.mark.parametrize(("largest", "vocabulary"), [(299, 299), (304, 304)])
def test_a_tokenizer_with_ids_outside_the_vocabulary_is_refused(
    largest, vocabulary, tmp_path, tokenizer
) -> None:
    """However many entries it has: ids may be left out."""
    words = Path(shutil.copytree(tokenizer, tmp_path / "words"))
    state = json.loads((words / "tokenizer.json").read_text())
    last = max(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    state["model"]["vocab"][last] = largest
    (words / "tokenizer.json").write_text(json.dumps(state))
    path = save(make_checkpoint(vocabulary=vocabulary), tmp_path)
    with pytest.raises(
        KrakenError, match=rf"ids up to {largest} and the checkpoint a vocabulary of {vocabulary}:"
    ):
        convert(path, tmp_path / "out", str(words))
    assert not (tmp_path / "out").exists()


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_code_is_refused_and_does_not_run(tmp_path) -> None:
    checkpoint = {**make_checkpoint(), "config": Evil(tmp_path / "ran")}
    assert_refused(checkpoint, tmp_path, "ckpt.pt", "code", "system", "weights_only")


@pytest.mark.parametrize("keep", [0, 40, 5000, -200])
def test_a_truncated_file_is_refused(keep, tmp_path) -> None:
    path = save(make_checkpoint(), tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(KrakenError, match=r"cannot read .*ckpt.pt.*truncated"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "ckpt.pt"
    with pytest.raises(KrakenError, match=r"no checkpoint file at .*ckpt\.pt"):
        convert(path, tmp_path / "out")
    with pytest.raises(KrakenError, match="no checkpoint file at"):
        convert(tmp_path, tmp_path / "out")
    path.write_text("loss 3.2\n" * 500)
    with pytest.raises(KrakenError, match="cannot read"):
        convert(path, tmp_path / "out")
    assert_refused([1, 2], tmp_path, "'model'")
    assert_refused({"model": {}}, tmp_path, "'model_args'")


def test_all_missing_unexpected_and_misshapen_tensors_are_named(tmp_path) -> None:
    checkpoint = make_checkpoint(prefix="_orig_mod.")
    state = checkpoint["model"]
    del state["_orig_mod.transformer.h.1.0.ln_2.weight"]
    del state["_orig_mod.transformer.wpe.weight"]
    state["_orig_mod.transformer.h.1.0.gate.weight"] = torch.zeros(5)
    state["extra"] = [1]
    state["_orig_mod.transformer.h.0.2.mlp.c_fc.weight"] = torch.zeros(32, 8)
    state["_orig_mod.transformer.ln_f.weight"] = torch.zeros(8, dtype=torch.int8)
    assert_refused(
        checkpoint,
        tmp_path,
        "missing: transformer.wpe.weight [16, 8], transformer.h.1.0.ln_2.weight [8];",
        "unexpected: transformer.h.1.0.gate.weight [5], extra a list;",
        "wrong: transformer.h.0.2.mlp.c_fc.weight is [32, 8], expected [24, 8],",
        "transformer.ln_f.weight is [8] of torch.int8, expected [8].",
        "nothing was written",
    )


def test_biases_must_agree_with_model_args(tmp_path) -> None:
    checkpoint = make_checkpoint(bias=True)
    checkpoint["model_args"]["bias"] = False
    assert_refused(checkpoint, tmp_path, "unexpected: ", "transformer.conjunction.bias [8]")
    checkpoint = make_checkpoint(bias=False)
    checkpoint["model_args"]["bias"] = True
    assert_refused(checkpoint, tmp_path, "missing: ", "transformer.h.1.2.attn.c_attn.bias [24]")


@pytest.mark.parametrize(
    ("changes", "essentials"),
    [
        ({"n_head": None, "bias": None}, ["lacks n_head, bias"]),
        ({"n_head": "4", "n_layer": 0}, ["n_layer=0", "n_head='4'", "whole numbers"]),
        ({"bias": 1}, ["bias=1", "True or False"]),
        ({"is_split": False}, ["is_split=False", "standard GPT"]),
        ({"n_head": 5}, ["n_head=5", "n_heads_in_split=2"]),
        ({"n_heads_in_split": 3, "n_head": 6}, ["impossible", "hidden_size=8"]),
        ({"dropout": 2.0}, ["impossible", "dropout=2.0"]),
    ],
)
def test_wrong_model_args_are_named(changes, essentials, tmp_path) -> None:
    checkpoint = make_checkpoint()
    args = {**checkpoint["model_args"], **changes}
    checkpoint["model_args"] = {key: value for key, value in args.items() if value is not None}
    assert_refused(checkpoint, tmp_path, "ckpt.pt", *essentials)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    from safetensors import SafetensorError

    def refuse(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("krakenlm.integrations.authors_release.save_file", refuse)
    assert_refused(make_checkpoint(), tmp_path, "no space left", str(tmp_path / "out"))


def test_messages_are_one_line(tmp_path) -> None:
    with pytest.raises(KrakenError) as refusal:
        convert(save({"model": Evil(tmp_path / "ran")}, tmp_path), tmp_path / "out")
    assert not re.search(r"\n", str(refusal.value))
