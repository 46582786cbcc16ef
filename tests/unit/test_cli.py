"""The command line: results on stdout, problems in one line, nothing left over."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from krakenlm.cli.main import spread_many_valued
from krakenlm.config import (
    ModelConfig,
    allreduce_bytes_per_token,
    count_parameters,
    derive,
    kv_cache_bytes_per_token,
    model_config,
    relative_difference,
)
from krakenlm.model.checkpoint import read_config

pytestmark = pytest.mark.usefixtures("own_signals")


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch) -> Callable[..., tiny.Outcome]:
    """Runs a command in this process, with ``tmp_path`` as its working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: tiny.call(capfd, *arguments)


def program(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command as users do."""
    return subprocess.run(
        [sys.executable, "-m", "krakenlm", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_refused(outcome: tiny.Outcome, *essentials: str, progress: bool = False) -> None:
    """One clear line, exit code 2, no traceback; ``progress``: other lines may stand before it."""
    assert outcome.code == 2, outcome.err
    lines = outcome.err.strip().splitlines()
    assert len(outcome.complaints) == 1, outcome.err
    assert lines[-1] == outcome.complaints[0], outcome.err
    assert progress or len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for essential in essentials:
        assert essential in lines[-1]


# --- the frame ---------------------------------------------------------------------------------


def test_version(cli):
    outcome = cli("--version")
    assert outcome == tiny.Outcome(0, f"krakenlm {version('krakenlm')}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["--bogus"],
        ["train"],
        ["train", "--bogus", "x"],
        ["train", "a.toml", "b.toml"],
        ["derive", "gpt2"],
        ["derive", "gpt2", "--sublayers", "two"],
        ["prepare", "out", "--tokenizer", "train:300"],
        ["prepare", "out", "--text", "a.txt", "--dataset", "openwebtext"],
        ["prepare", "out", "--text", "a.txt", "--split", "test"],
        ["prepare", "out", "--text", "a.txt", "--revision", "main"],
        ["prepare", "out", "--verify", "--text", "a.txt"],
        ["prepare", "out", "--tokenizer", "train:300", "--text"],
        ["demo", "--text"],
        ["demo", "--text", "--out", "demo"],
        ["demo", "--steps", "0"],
        ["generate", "model"],
        ["perplexity", "model"],
        ["eval"],
        ["eval", "model", "other"],
        ["eval", "model", "--compare"],
        ["convert", "a.pt"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line(cli, tmp_path, arguments):
    assert_refused(cli(*arguments), "see `krakenlm --help`")
    assert list(tmp_path.iterdir()) == []


def test_without_a_command_the_help_is_shown(cli):
    outcome = cli()
    assert (outcome.code, outcome.err) == (2, "")
    for name in ("demo", "derive", "prepare", "train", "perplexity", "eval", "generate", "convert"):
        assert re.search(rf"\b{name}\b", outcome.out)
    assert cli("--help").code == 0
    assert "--max-new-tokens" in cli("generate", "--help").out


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--text a b c", "--text a --text b --text c"),
        ("out --text a b --tokenizer t", "out --text a --text b --tokenizer t"),
        ("--text a --text b", "--text a --text b"),
        ("--text a b --force out", "--text a --text b --force out"),
        ("--tokenizer t --text a b", "--tokenizer t --text a --text b"),
        ("--text", "--text"),
        ("--text --out d", "--text --out d"),
        ("--text --text a b", "--text --text a --text b"),
        ("m --compare a b", "m --compare a --compare b"),
        ("--prompt a b", "--prompt a b"),
        ("", ""),
    ],
)
def test_values_of_text_are_spread(given, meant):
    assert spread_many_valued(given.split()) == meant.split()


def test_several_texts_after_one_flag(cli, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name} {tiny.text(60)}")
    texts = ["a.txt", "b.txt", "c.txt"]
    outcome = cli("prepare", "out", "--text", *texts, "--tokenizer", "train:300")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [Path(source["path"]).name for source in manifest["sources"]] == texts


def test_an_unexpected_error_is_one_line_and_exit_code_1(cli, monkeypatch):
    def fail(name):
        raise ZeroDivisionError("rank 1 failed:\nTraceback (most recent call last):\n  x\nwhy")

    monkeypatch.setattr("krakenlm.cli.derive.model_config", fail)
    outcome = cli("derive", "gpt2", "-n", "2")
    assert outcome == tiny.Outcome(
        1, "", "krakenlm: ZeroDivisionError: rank 1 failed: why (--debug shows where)\n"
    )
    shown = cli("derive", "gpt2", "-n", "2", "--debug")
    assert shown.code == 1
    assert 'Traceback (most recent call last):\n  File "' in shown.err
    assert "in fail" in shown.err


def test_debug_may_stand_anywhere_and_keeps_the_exit_code(cli):
    for arguments in (["--debug", "train", "gone.toml"], ["train", "gone.toml", "--debug"]):
        outcome = cli(*arguments)
        assert outcome.code == 2
        assert "Traceback" in outcome.err and "FileNotFoundError" in outcome.err
        assert outcome.err.splitlines()[-1] == outcome.complaints[0]


def test_ctrl_c_is_one_line_and_exit_code_130(cli, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("krakenlm.cli.derive.model_config", interrupted)
    outcome = cli("derive", "gpt2", "-n", "2")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.startswith("krakenlm: interrupted") and outcome.err.count("\n") == 1


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys

class Interruption:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interruption())
from krakenlm.__main__ import main
main()
"""


def test_ctrl_c_is_one_line_also_while_the_command_is_being_loaded():
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_LOADING], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "krakenlm: interrupted: nothing had begun\n"


def test_an_end_of_file_is_no_interruption(cli, monkeypatch):
    def ended(name):
        raise EOFError("early")

    monkeypatch.setattr("krakenlm.cli.derive.model_config", ended)
    outcome = cli("derive", "gpt2", "-n", "2")
    assert (outcome.code, outcome.err) == (1, "krakenlm: EOFError: early (--debug shows where)\n")


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    """What ``krakenlm derive gpt2 -n 2 | true`` does."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "krakenlm", "derive", "gpt2", "-n", "2"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
    finally:
        os.close(writer)
    assert (ended.stderr, ended.returncode) == ("", 1)


# --- derive ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ([], {}),
        (["--head-dim", "64"], {"head_dim": 64}),
        (["--kv-heads", "1"], {"kv_heads": 1}),
        (["--rule", "keep-width"], {"rule": "keep-width"}),
        (["--rule", "shared"], {"rule": "shared"}),
        (["--wiring", "kraken-shared"], {"wiring": "kraken-shared"}),
        (
            ["--wiring", "kraken-shared", "--rule", "keep-width", "--message-parts", "2"],
            {"wiring": "kraken-shared", "rule": "keep-width", "message_parts": 2},
        ),
        (["--rule", "shared", "--message-parts", "3"], {"rule": "shared", "message_parts": 3}),
    ],
)
def test_derive_prints_the_numbers_of_the_configuration(cli, tmp_path, options, keywords):
    outcome = cli("derive", "gpt2", "--sublayers", "4", "--out", "out", *options)
    assert outcome.code == 0, outcome.err
    standard, kraken = model_config("gpt2"), derive(model_config("gpt2"), 4, **keywords)
    rows = table(outcome.out)
    for label, function in {
        "hidden_size": lambda c: c.hidden_size,
        "num_sublayers": lambda c: c.num_sublayers,
        "heads_per_sublayer": lambda c: c.heads_per_sublayer,
        "kv_heads_per_sublayer": lambda c: c.kv_heads_per_sublayer,
        "head_dim": lambda c: c.head_dim,
        "ffn_dim": lambda c: c.ffn_dim,
        "parameters": count_parameters,
        "attention width": lambda c: c.attention_width,
        "KV-cache bytes per token": kv_cache_bytes_per_token,
        "per device, 4 devices": lambda c: kv_cache_bytes_per_token(c) / 4,
        "AllReduce bytes per token": allreduce_bytes_per_token,
        "AllReduces per forward pass": lambda c: c.traits.allreduces(c.num_hidden_layers),
    }.items():
        before, after = function(standard), function(kraken)
        assert rows[label] == [f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.3f}"]
    difference = 100 * relative_difference(kraken, standard)
    assert f"parameters differ by {difference:+.2f}%" in outcome.out
    assert read_config(tmp_path / "out") == kraken
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def table(printed: str) -> dict[str, list[str]]:
    """Rows of a printed table by their label."""
    rows = {}
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) == 4 and cells[1]:
            rows[cells[0].removesuffix("(bfloat16)").strip()] = cells[1:]
    return rows


def test_derive_of_one_stream_says_that_nothing_is_narrowed(cli):
    outcome = cli("derive", "gpt2", "-n", "4", "--rule", "shared")
    assert "gpt2: the 4-way shared model that matches it" in outcome.out
    assert "over standard" in outcome.out
    assert "parameters differ by +0.00%" in outcome.out
    assert "--sublayers chooses another" in " ".join(outcome.out.split())
    assert table(outcome.out)["hidden_size"] == ["768", "768", "1.000"]
    kraken = cli("derive", "gpt2", "-n", "4").out
    assert "the 4-way Kraken that matches it" in kraken and "--sublayers" not in kraken


def test_derive_counts_bytes_in_the_type_asked_for(cli):
    standard, kraken = model_config("gpt2"), derive(model_config("gpt2"), 2)
    printed = cli("derive", "gpt2", "-n", "2", "--dtype", "float32").out
    for config in (standard, kraken):
        assert f"{kv_cache_bytes_per_token(config, 4):,}" in printed


def test_derive_starts_from_a_saved_standard_model(cli, tmp_path):
    standard = tiny.model_config(wiring="standard", num_sublayers=1, hidden_size=64)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(standard.to_hf_dict()))
    outcome = cli("derive", "base", "-n", "2")
    assert f"{count_parameters(derive(standard, 2)):,}" in outcome.out


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["prepare", "demo", "perplexity"])
@pytest.mark.parametrize(
    ("name", "content", "essentials"),
    [
        ("gone.txt", None, ["gone.txt does not exist"]),
        ("empty.txt", "", ["empty.txt is empty"]),
        ("empty.jsonl", "", ["empty.jsonl is empty"]),
    ],
    ids=["missing", "empty", "empty jsonl"],
)
def test_text_that_is_missing_or_empty(
    cli, tmp_path, tiny_model, command, name, content, essentials
):
    if content is not None:
        (tmp_path / name).write_text(content)
    before = tiny.snapshot(tmp_path)
    outcome = {
        "prepare": lambda: cli("prepare", "out", "--text", name, "--tokenizer", "train:300"),
        "demo": lambda: cli("demo", "--text", name, "--out", "demo"),
        "perplexity": lambda: cli("perplexity", tiny_model, name, "--json", "result.json"),
    }[command]()
    assert_refused(outcome, *essentials)
    assert tiny.snapshot(tmp_path) == before


def test_text_of_blanks_only_is_empty(cli, tmp_path, tiny_model):
    (tmp_path / "blank.txt").write_text(" \n" * 50)
    before = tiny.snapshot(tmp_path)
    outcome = cli("prepare", "out", "--text", "blank.txt", "--tokenizer", tiny_model)
    assert_refused(outcome, "blank.txt is empty", progress=True)
    assert_refused(cli("perplexity", tiny_model, "blank.txt"), "blank.txt is empty", progress=True)
    assert tiny.snapshot(tmp_path) == before


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("words", [200, 8])
def test_prompt_longer_than_the_context(cli, tmp_path, tiny_model, words, devices):
    """Alone, or together with the tokens asked for."""
    outcome = cli(
        *("generate", tiny_model, "--prompt", "word " * words),
        *("--max-new-tokens", 30, "--devices", devices),
    )
    assert_refused(outcome, f"context holds {tiny.CONTEXT}", "shorten the prompt")
    assert list(tmp_path.iterdir()) == []


def test_token_outside_the_vocabulary_of_generate(cli, own_model):
    shrink(own_model, 290)
    outcome = cli("generate", own_model, "--prompt", "and and")
    assert_refused(outcome, "tokenizer has ids up to 299", "vocabulary of 290")


def test_token_outside_the_vocabulary_of_perplexity(cli, tmp_path, own_model, tiny_data):
    shrink(own_model, 270)
    outcome = cli("perplexity", own_model, tiny_data, "--json", "result.json")
    assert_refused(outcome, "outside the vocabulary of 270", str(tiny_data))
    assert not (tmp_path / "result.json").exists()


def test_token_outside_the_vocabulary_of_train(cli, tmp_path, tiny_data):
    model = "vocab_size = 280\nhidden_size = 16\nheads_per_sublayer = 2\nnum_hidden_layers = 1"
    write_recipe(tmp_path, tiny_data, model=f"{model}\nmax_position_embeddings = 32")
    assert_refused(cli("train", "recipe.toml"), "tokens up to 299", "vocab_size of 280")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def shrink(model: Path, vocabulary: int) -> None:
    """Give a model fewer tokens than its tokenizer has."""
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:vocabulary].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    change_config(model, vocab_size=vocabulary)


def change_config(model: Path, **values: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **values}))


def write_recipe(folder: Path, data: Path, output: str = "run", **options: object) -> Path:
    path = folder / "recipe.toml"
    path.write_text(tiny.recipe_text(data, Path(output), **options))
    return path


@pytest.mark.parametrize("devices", [3, 99, 0, -1])
def test_more_devices_than_fit(cli, tiny_model, devices):
    outcome = cli("generate", tiny_model, "--prompt", "and", "--devices", devices)
    fits = "use at most 2" if devices > 2 else "needs 1 or more"
    assert_refused(outcome, f"--devices {devices}", fits)


def wrong_shape(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.feed_forward.up.weight"] = torch.zeros(2, 8, 16)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def missing_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.feed_forward.up.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def empty(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def unknown_key(model: Path) -> None:
    change_config(model, hiden_size=16)


def impossible_value(model: Path) -> None:
    change_config(model, heads_per_sublayer=3, kv_heads_per_sublayer=2)


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def no_model(model: Path) -> None:
    shutil.rmtree(model)


def a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.write_text("model")


BAD_MODELS = [
    (wrong_shape, ["model.layers.1.feed_forward.up.weight"]),
    (missing_tensor, ["model.layers.1.feed_forward.up.weight", "missing"]),
    (truncated, ["model.safetensors is", "truncated"]),
    (empty, ["model.safetensors is", "truncated"]),
    (no_weights, ["safetensors"]),
    (unknown_key, ["config.json", "unknown key 'hiden_size'", "did you mean 'hidden_size'?"]),
    (impossible_value, ["config.json", "kv_heads_per_sublayer=2 does not divide"]),
    (no_config, ["config.json"]),
    (broken_config, ["JSON"]),
    (no_model, ["model"]),
    (a_file, ["is a file"]),
]
bad_models = pytest.mark.parametrize(
    ("damage", "essentials"), BAD_MODELS, ids=[damage.__name__ for damage, _ in BAD_MODELS]
)


@bad_models
def test_generate_refuses_a_bad_model(cli, own_model, damage, essentials):
    damage(own_model)
    outcome = cli("generate", own_model, "--prompt", "and", "--max-new-tokens", 2)
    assert_refused(outcome, str(own_model), *essentials)


@bad_models
def test_perplexity_refuses_a_bad_model(cli, tmp_path, own_model, tiny_data, damage, essentials):
    damage(own_model)
    outcome = cli("perplexity", own_model, tiny_data, "--json", "result.json")
    assert_refused(outcome, str(own_model), *essentials)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.dist
@pytest.mark.parametrize(
    ("damage", "essentials"),
    [BAD_MODELS[0], BAD_MODELS[2]],
    ids=["wrong_shape", "truncated"],
)
def test_a_rank_that_meets_a_bad_model_says_so_in_one_line(cli, own_model, damage, essentials):
    damage(own_model)
    outcome = cli("generate", own_model, "--prompt", "and", "--devices", 2, "--max-new-tokens", 2)
    assert_refused(outcome, str(own_model), *essentials)


def test_a_bad_config_cannot_be_derived_from(cli, tmp_path, own_model):
    unknown_key(own_model)
    outcome = cli("derive", own_model, "-n", "2", "--out", "out")
    assert_refused(outcome, "unknown key 'hiden_size'")
    assert not (tmp_path / "out").exists()


def authors_checkpoint(path: Path, change: Callable[[dict, dict], None] = lambda *_: None) -> None:
    """What the authors' training script saves, 2 sub-layers of width 4, one layer."""
    n, d, vocabulary, context = 2, 4, 11, 8
    torch.manual_seed(0)
    model = {
        "transformer.wte.weight": torch.randn(vocabulary, d),
        "transformer.wpe.weight": torch.randn(context, d),
        "transformer.conjunction.weight": torch.randn(d, n * d),
        "transformer.ln_f.weight": torch.randn(d),
    }
    model["lm_head.weight"] = model["transformer.wte.weight"]
    for sublayer in range(n):
        name = f"transformer.h.{sublayer}.0"
        model |= {f"{name}.{norm}.weight": torch.randn(d) for norm in ("ln_1", "ln_2")}
        model[f"{name}.attn.c_attn.weight"] = torch.randn(3 * d, d)
        model[f"{name}.attn.c_proj.weight"] = torch.randn(d, d)
        model[f"{name}.mlp.c_fc.weight"] = torch.randn(2 * d, d)
        model[f"{name}.mlp.c_proj.weight"] = torch.randn(d, 2 * d)
    arguments = {
        "n_layer": 1, "n_head": 4, "n_embd": d, "block_size": context, "bias": False,
        "vocab_size": vocabulary, "dropout": 0.0, "n_heads_in_split": 2, "is_split": True,
        "ffn_expansion": 2,
    }  # fmt: skip
    change(model, arguments)
    torch.save({"model": model, "model_args": arguments}, path)


@pytest.mark.parametrize(
    ("change", "essentials"),
    [
        (
            lambda m, a: m.update({"transformer.ln_f.weight": torch.zeros(3)}),
            ["ln_f.weight is [3], expected [4]"],
        ),
        (lambda m, a: m.pop("transformer.ln_f.weight"), ["missing: transformer.ln_f.weight"]),
        (lambda m, a: a.pop("n_embd"), ["model_args lacks n_embd"]),
        (lambda m, a: a.update(n_layer=0), ["n_layer=0"]),
    ],
    ids=["wrong shape", "missing tensor", "missing argument", "impossible argument"],
)
def test_convert_refuses_what_does_not_fit(cli, tmp_path, change, essentials):
    authors_checkpoint(tmp_path / "ckpt.pt", change)
    assert_refused(cli("convert", "ckpt.pt", "out"), "ckpt.pt", *essentials)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 but no more", "cut"])
def test_convert_refuses_a_file_that_is_none(cli, tmp_path, content):
    if content == "cut":
        authors_checkpoint(tmp_path / "ckpt.pt")
        content = (tmp_path / "ckpt.pt").read_bytes()[:-200]
    if content is not None:
        (tmp_path / "ckpt.pt").write_bytes(content)
    before = tiny.snapshot(tmp_path)
    assert_refused(cli("convert", "ckpt.pt", "out"), "ckpt.pt")
    assert tiny.snapshot(tmp_path) == before


def test_convert_makes_a_model_folder(cli, tmp_path):
    authors_checkpoint(tmp_path / "ckpt.pt")
    outcome = cli("convert", "ckpt.pt", "out")
    assert (outcome.code, outcome.complaints) == (0, []), outcome.err
    assert read_config(tmp_path / "out") == ModelConfig(
        num_sublayers=2, hidden_size=4, num_hidden_layers=1, heads_per_sublayer=2,
        vocab_size=11, max_position_embeddings=8,
    )  # fmt: skip
    assert f"{count_parameters(read_config(tmp_path / 'out')):,} parameters" in outcome.out


@pytest.mark.parametrize(
    ("change", "essentials"),
    [
        ({"old": "steps = 8", "new": "stepz = 8"}, ["recipe.toml", "unknown key 'stepz'"]),
        ({"old": "num_hidden", "new": "num_hiden"}, ["'num_hiden_layers'", "'num_hidden_layers'"]),
        ({"old": 'data = "', "new": 'data = "gone/'}, ["gone/", "does not exist"]),
        ({"old": "steps = 8", "new": "steps = = 8"}, ["recipe.toml is not valid TOML"]),
        ({"old": "'cpu'", "new": "'tpu'"}, ["device='tpu'", "'auto', 'cpu', 'cuda'"]),
    ],
)
def test_train_refuses_a_bad_recipe(cli, tmp_path, tiny_data, change, essentials):
    path = write_recipe(tmp_path, tiny_data)
    assert change["old"] in path.read_text()
    path.write_text(path.read_text().replace(change["old"], change["new"]))
    assert_refused(cli("train", "recipe.toml"), *essentials)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_prepare_checks_what_it_made(cli, tmp_path, tiny_data):
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    outcome = cli("prepare", "--verify", "data")
    assert (outcome.code, outcome.out) == (0, "data is whole: 2 token files and the tokenizer\n")
    tokens = bytearray((data / "train-00000.bin").read_bytes())
    tokens[100] ^= 1
    (data / "train-00000.bin").write_bytes(tokens)
    outcome = cli("prepare", "--verify", "data")
    assert_refused(outcome, "data is damaged", "train-00000.bin: copy again", progress=True)


def test_prepare_stops_at_a_bad_line_or_leaves_it_out(cli, tmp_path):
    lines = [json.dumps({"text": f"{i} {tiny.text(3)}"}) for i in range(60)]
    text = "\ufeff" + "\n".join([*lines[:9], "{nope", *lines[9:]])
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    arguments = ("prepare", "out", "--text", "a.jsonl", "--tokenizer", "train:300")
    assert_refused(
        cli(*arguments), "a.jsonl:10: not valid JSON", "--skip-bad leaves such lines", progress=True
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    outcome = cli(*arguments, "--skip-bad", "--validation-fraction", "0.2")
    assert outcome.code == 0
    assert "note: 1 bad line left out, counted in manifest.json:\n  a.jsonl:10: " in outcome.err
    (source,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"]
    assert (source["path"], source["skipped"]) == ("a.jsonl", 1)


def test_prepare_without_the_hub(cli, tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    monkeypatch.setattr("krakenlm.data.hub.hub_answers", lambda: False)
    outcome = cli("prepare", "--dataset", "openwebtext", "out")
    assert_refused(outcome, "dataset openwebtext", "Hub cannot be reached", "--text FILE...")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["train", "validation"])
def test_train_and_perplexity_refuse_truncated_tokens(cli, tmp_path, tiny_model, tiny_data, split):
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    tokens = data / f"{split}-00000.bin"
    tokens.write_bytes(tokens.read_bytes()[:-10])
    write_recipe(tmp_path, data)
    assert_refused(cli("train", "recipe.toml"), f"{split}-00000.bin", "truncated or damaged")
    assert not (tmp_path / "run").exists()
    outcome = cli("perplexity", tiny_model, data, "--split", split)
    assert_refused(outcome, f"{split}-00000.bin", "truncated or damaged")


@pytest.mark.parametrize(
    ("arguments", "essentials"),
    [
        (["--max-new-tokens", "0"], ["--max-new-tokens 0", "1 or more"]),
        (["--temperature", "-1"], ["--temperature -1.0", "0 or more"]),
        (["--top-k", "-1"], ["--top-k -1"]),
        (["--top-p", "0"], ["--top-p 0.0", "at most 1"]),
        (["--dtype", "int8"], ["--dtype int8", "float32"]),
        (["--device", "tpu"], ["--device tpu", "auto, cpu, cuda"]),
        (["--transport", "pigeon"], ["--transport pigeon", "auto, shared-memory, sockets"]),
        (["--threads", "0"], ["--threads 0", "1 or more"]),
    ],
)
def test_generate_refuses_bad_options(cli, tiny_model, arguments, essentials):
    assert_refused(cli("generate", tiny_model, "--prompt", "and", *arguments), *essentials)


@pytest.mark.parametrize(
    ("arguments", "essentials"),
    [
        (["no-size", "-n", "2"], ["unknown size 'no-size'", "gpt2"]),
        (["gpt2", "-n", "5"], ["num_sublayers=5", "12 query heads", "use one of 1, 2, 3, 4, 6"]),
        (["gpt2", "-n", "0"], ["num_sublayers=0", "1 or more"]),
        (["gpt2", "-n", "5", "--rule", "shared"], ["num_sublayers=5", "use one of 1, 2, 3, 4, 6"]),
        (
            ["gpt2", "-n", "2", "--rule", "shared", "--head-dim", "64"],
            ["rule='shared'", "leave head_dim and kv_heads out"],
        ),
        (
            ["gpt2", "-n", "2", "--rule", "mine"],
            ["'--rule': 'mine' is not one of 'published', 'keep-width', 'shared'"],
        ),
        (
            ["gpt2", "-n", "2", "--wiring", "mine"],
            ["'--wiring'", "'mine' is not one of", "kraken-shared"],
        ),
        (["gpt2", "-n", "2", "--message-parts", "2"], ["message_parts=2", "a kraken model"]),
        (["gpt2", "-n", "2", "--dtype", "int4"], ["'--dtype': 'int4' is not one of"]),
        (["gpt2", "-n", "2", "--kv-heads", "4"], ["kv_heads_per_sublayer=4"]),
    ],
)
def test_derive_refuses_bad_options(cli, tmp_path, arguments, essentials):
    assert_refused(cli("derive", *arguments, "--out", "out"), *essentials)
    assert list(tmp_path.iterdir()) == []


# --- a full disk -------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of that size; the test is skipped where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        os.chdir("/")
        subprocess.run(["umount", str(folder)], check=True)


FULL = "no space left on the disk"


def test_prepare_on_a_full_disk(cli, tmp_path, tiny_text):
    with small_disk(tmp_path / "disk", 12) as disk:
        outcome = cli("prepare", disk / "out", "--text", tiny_text, "--tokenizer", "train:300")
        assert_refused(outcome, f"cannot write {disk}/out: {FULL}", progress=True)
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [4, 20, 40, 120, 400])
def test_train_on_a_full_disk_goes_on_when_there_is_room(
    cli, tmp_path, tiny_data, kilobytes, figure
):
    """Full at the recipe, at a configuration, in the weights, the optimizer, the second one."""
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        recipe = write_recipe(tmp_path, tiny_data, f"{disk}/run", steps=4, save_every=2)
        outcome = cli("train", recipe)
        assert_refused(outcome, f"cannot write {disk}/run", FULL, progress=True)
        left = {str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file()}
        whole = {name for name in left if "checkpoint-2/" in name}
        assert left == whole | {"run/recipe.json"}
        assert bool(whole) == (kilobytes == 400)
        assert not whole or "run/checkpoints/checkpoint-2/complete" in whole
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        outcome = cli("train", recipe)
        assert outcome.code == 0, outcome.err
        assert ("going on from checkpoint-2" in outcome.err) == bool(whole)
    kept = "the last good checkpoint is kept" if whole else "nothing half-written is kept"
    figure(
        f"a disk of {kilobytes} kB that is full in the middle of training",
        f"one line says so, {kept}, and the same command goes on",
        "says so, keeps the last good checkpoint",
    )


@pytest.mark.parametrize(("kilobytes", "code"), [(420, 0), (300, 2)])
def test_train_goes_on_without_the_checkpoints_that_have_no_room(
    cli, tmp_path, tiny_data, kilobytes, code, figure
):
    """There is room for one checkpoint and the finished model, or for the checkpoint alone."""
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        settings = {"steps": 6, "save_every": 2, "on_full_disk": "go-on"}
        outcome = cli("train", write_recipe(tmp_path, tiny_data, f"{disk}/run", **settings))
        assert outcome.code == code
        without = "; training goes on without this checkpoint"
        left_out = [line for line in outcome.err.splitlines() if line.endswith(without)]
        assert [line[:7] for line in left_out] == ["step 4:", "step 6:"]
        assert all(f"cannot write {disk}/run: {FULL}" in line for line in left_out)
        (kept,) = (disk / "run" / "checkpoints").iterdir()
        assert kept.name == "checkpoint-2" and (kept / "complete").exists()
        assert (disk / "run" / "model").exists() == (code == 0)
        assert code == 0 or f"krakenlm: cannot write {disk}/run/model: {FULL}" in outcome.err
    if code == 0:
        figure(
            'the same with on_full_disk = "go-on"',
            "two checkpoints are left out with a line each, training ends well",
            "goes on as configured",
        )


def test_derive_on_a_full_disk(cli, tmp_path):
    with small_disk(tmp_path / "disk", 4) as disk:
        (disk / "filler").write_bytes(b"x" * 4096)
        outcome = cli("derive", "gpt2", "-n", "2", "--out", disk / "out")
        assert outcome.code == 2
        assert outcome.err.startswith(f"krakenlm: cannot write {disk}/out/config.json: {FULL}")
        assert outcome.err.count("\n") == 1
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_convert_on_a_full_disk(cli, tmp_path):
    authors_checkpoint(tmp_path / "ckpt.pt")
    with small_disk(tmp_path / "disk", 8) as disk:
        (disk / "filler").write_bytes(b"x" * 4096)
        outcome = cli("convert", "ckpt.pt", disk / "out")
        assert_refused(outcome, f"cannot write {disk}/out", FULL)
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_perplexity_result_on_a_full_disk(cli, tmp_path, tiny_model, tiny_data):
    with small_disk(tmp_path / "disk", 4) as disk:
        (disk / "filler").write_bytes(b"x" * 4096)
        outcome = cli("perplexity", tiny_model, tiny_data, "--json", disk / "result.json")
        assert outcome.code == 2
        assert len(outcome.complaints) == 1 and FULL in outcome.complaints[0]
        assert "perplexity" in outcome.out  # measured: the numbers are not lost
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_demo_on_a_full_disk(cli, tmp_path, tiny_text):
    with small_disk(tmp_path / "disk", 12) as disk:
        outcome = cli("demo", "--text", tiny_text, "--out", disk / "demo")
        assert_refused(outcome, f"cannot write {disk}/demo/data: {FULL}", progress=True)
        assert [str(path.relative_to(disk)) for path in disk.rglob("*")] == [
            "demo",
            "demo/inputs.json",
        ]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
    ids=["system", "quota", "safetensors", "torch"],
)
def test_every_way_to_say_that_the_disk_is_full(cli, tmp_path, tiny_data, monkeypatch, error):
    """The same where nothing can be mounted: what the libraries raise, at the model's save.

    What torch raises does not tell, so the disk is asked.
    """

    def full(self, output_dir, **kwargs):
        raise error

    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr("krakenlm.train.loop.LoopTrainer.save_model", full)
    outcome = cli("train", write_recipe(tmp_path, tiny_data, steps=1))
    assert_refused(outcome, "cannot write", "free some", progress=True)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"recipe.toml", "run/recipe.json", "run/history.json"}


def test_an_output_folder_that_is_a_file(cli, tmp_path, tiny_data, tiny_text):
    (tmp_path / "file").write_text("mine")
    before = tiny.snapshot(tmp_path)
    for arguments in (
        ["prepare", "file", "--text", tiny_text, "--tokenizer", "train:300"],
        ["prepare", "file/out", "--text", tiny_text, "--tokenizer", "train:300"],
        ["derive", "gpt2", "-n", "2", "--out", "file"],
        ["demo", "--text", tiny_text, "--out", "file"],
    ):
        outcome = cli(*arguments)
        assert outcome.code == 2 and len(outcome.complaints) == 1, outcome.err
        assert "Traceback" not in outcome.err
        assert tiny.snapshot(tmp_path) == before


# --- from text to an answer --------------------------------------------------------------------


def test_prepare_train_perplexity_generate(cli, tmp_path, tiny_text):
    """The whole way, results on stdout and the rest not; the first two as programs of their own."""
    prepared = program(
        *("prepare", "data", "--text", tiny_text, "--tokenizer", "train:300"),
        *("--validation-fraction", "0.1"),
        cwd=tmp_path,
    )
    assert prepared.returncode == 0, prepared.stderr
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    for split in manifest["splits"].values():
        assert f"{split['tokens']:,}" in prepared.stdout
    assert "tokenizing" in prepared.stderr and "tokenizing" not in prepared.stdout

    write_recipe(tmp_path, Path("data"), steps=40, save_every=20)
    trained = program("train", "recipe.toml", cwd=tmp_path)
    assert (trained.returncode, trained.stdout) == (0, "run/model\n"), trained.stderr
    assert re.search(r"40/40 loss \d\.\d{3}", trained.stderr)
    assert "Traceback" not in trained.stderr and "Warning" not in trained.stderr

    scored = cli("perplexity", "run/model", "data", "--json", "score.json")
    assert scored.code == 0, scored.err
    score = json.loads((tmp_path / "score.json").read_text())
    assert f"{score['perplexity']:.2f}" in scored.out
    assert score["perplexity"] < tiny.VOCABULARY / 3  # untrained, it would be the vocabulary
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert score["loss"] == pytest.approx(history["validation"][-1]["loss"], abs=0.15)

    arguments = ("generate", "run/model", "--prompt", "end of", "--max-new-tokens", 8)
    answered = cli(*arguments, "--stats")
    assert answered.code == 0, answered.err
    assert answered.out.startswith("end of") and len(answered.out) > len("end of\n")
    assert re.fullmatch(
        r"8 tokens: time to first token \d+\.\d ms, per token after \d+\.\d ms\n", answered.err
    )
    for folder in (tmp_path, tmp_path / "run"):
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.dist
@pytest.mark.slow  # tests/dist compares tokens and logits on 1 to 4 ranks
def test_generate_on_two_devices_gives_the_same_text(cli, tiny_model):
    arguments = ("generate", tiny_model, "--prompt", "Line 1", "--max-new-tokens", 12)
    one, two = cli(*arguments), cli(*arguments, "--devices", 2)
    assert (one.code, two.code) == (0, 0), two.err
    assert one.out == two.out
    assert one.out.startswith("Line 1") and len(one.out) > len("Line 1\n")
    assert one.err == two.err == ""


def test_generate_draws_by_seed(cli, tiny_model):
    def drawn(seed: int) -> str:
        options = ("--max-new-tokens", 16, "--temperature", 1.0, "--seed", seed)
        return cli("generate", tiny_model, "--prompt", "Line", *options).out

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
