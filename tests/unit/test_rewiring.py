"""One set of weights under several wirings and numbers of branches."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from krakenlm.config import WIRINGS, ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.rewiring import lay_out, rewire
from krakenlm.model.checkpoint import read_config
from reference import reference_logits

IDS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(3))
STANDARD = ModelConfig(
    wiring="standard", num_sublayers=1, hidden_size=24, num_hidden_layers=3, heads_per_sublayer=12,
    kv_heads_per_sublayer=12, ffn_dim=48, vocab_size=61, max_position_embeddings=16, bias=True,
)  # fmt: skip
KRAKEN_SHARED = tiny.model_config(wiring="kraken-shared")
ONE_NORM = [name for name, traits in WIRINGS.items() if traits.norms_per_layer == 1]
TWO_NORMS = [n for n, t in WIRINGS.items() if t.norms_per_layer == 2 and not t.own_norms]


def save(config: ModelConfig, folder: Path) -> KrakenForCausalLM:
    torch.manual_seed(0)
    hf_config = KrakenConfig.from_model_config(config, eos_token_id=7)
    model = KrakenForCausalLM(hf_config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float64
    with torch.no_grad():
        return model(IDS).logits


def test_shared_with_one_branch_is_the_standard_model_but_for_the_order_of_additions(tmp_path):
    model = save(STANDARD, tmp_path / "standard")
    assert (
        rewire(tmp_path / "standard", tmp_path / "shared", wiring="shared").config.num_sublayers
        == 1
    )
    with torch.no_grad():
        torch.testing.assert_close(
            logits(tmp_path / "shared"), model(IDS).logits, rtol=1e-13, atol=1e-13
        )


@pytest.mark.parametrize("wiring", TWO_NORMS)
@pytest.mark.parametrize("branches", [1, 2, 3, 4, 6])
def test_weights_go_to_any_wiring_and_number_of_branches_and_back(wiring, branches, tmp_path):
    model = save(STANDARD, tmp_path / "standard")
    rewire(tmp_path / "standard", tmp_path / "other", wiring=wiring, num_sublayers=branches)
    config = read_config(tmp_path / "other")
    assert config.num_sublayers == branches
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    wanted = reference_logits(config, loaded.state_dict(), IDS)
    torch.testing.assert_close(logits(tmp_path / "other"), wanted, rtol=1e-9, atol=1e-9)
    rewire(tmp_path / "other", tmp_path / "back", wiring="standard", num_sublayers=1)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_another_degree_of_shared_is_another_function(tmp_path):
    save(STANDARD, tmp_path / "standard")
    found = []
    for branches in (1, 2, 4):
        out = tmp_path / str(branches)
        rewire(tmp_path / "standard", out, wiring="shared", num_sublayers=branches)
        found.append(logits(out))
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(found[1], found[2], atol=1e-3)


def test_the_parts_of_a_message_are_part_of_the_function_and_not_of_the_weights(tmp_path):
    save(STANDARD, tmp_path / "standard")
    made = rewire(
        tmp_path / "standard", tmp_path / "2", wiring="shared", num_sublayers=4, message_parts=2
    )
    assert made.is_another_function and read_config(tmp_path / "2").message_parts == 2
    assert not rewire(tmp_path / "2", tmp_path / "copy").is_another_function
    again = rewire(tmp_path / "2", tmp_path / "1", message_parts=1)
    assert again.is_another_function
    assert torch.equal(logits(tmp_path / "2"), logits(tmp_path / "copy"))
    assert not torch.allclose(logits(tmp_path / "2"), logits(tmp_path / "1"), atol=1e-3)
    whole, parted = (load_file(tmp_path / name / "model.safetensors") for name in "12")
    assert all(torch.equal(tensor, parted[name]) for name, tensor in whole.items())
    assert rewire(tmp_path / "2", tmp_path / "late", wiring="lagged").config.message_parts == 1


def test_late_layers_are_part_of_the_function_and_not_of_the_weights(tmp_path):
    save(STANDARD, tmp_path / "standard")
    made = rewire(
        tmp_path / "standard", tmp_path / "1", wiring="shared", num_sublayers=4, late_layers="1"
    )
    assert made.is_another_function and read_config(tmp_path / "1").late_layers == "1"
    again = rewire(tmp_path / "1", tmp_path / "all", late_layers="all")
    assert again.is_another_function and again.config.late_layers == ""
    assert not torch.allclose(logits(tmp_path / "1"), logits(tmp_path / "all"), atol=1e-3)
    one, every = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "all"))
    assert all(torch.equal(tensor, every[name]) for name, tensor in one.items())


@pytest.mark.parametrize("wiring", ["lagged", "lagged-layer", "standard"])
def test_other_wirings_are_one_function_in_any_layout(wiring, tmp_path):
    config = STANDARD.replace(
        wiring=wiring, num_sublayers=4, heads_per_sublayer=3, kv_heads_per_sublayer=3, ffn_dim=12
    )
    model = save(config, tmp_path / "four")
    rewire(tmp_path / "four", tmp_path / "one")
    with torch.no_grad():
        torch.testing.assert_close(
            logits(tmp_path / "one"), model(IDS).logits, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    ("stored", "wiring", "branches", "message"),
    [
        (
            STANDARD,
            "kraken",
            2,
            r"standard and kraken differ in their weights: kraken has norms for",
        ),
        (tiny.model_config(), "shared", 2, r"kraken and shared differ.*from the start"),
        (STANDARD, "kraken-shared", 2, r"kraken-shared has norms for each branch, which standard"),
        (tiny.model_config(), "kraken-shared", 2, r"kraken has a conjunction, which kraken-shared"),
        (
            KRAKEN_SHARED,
            "kraken-shared",
            4,
            r"this kraken-shared model has 2 sub-layers with norms",
        ),
        (STANDARD, "lagged-layer", 2, r"2 norms a layer and lagged-layer 1: use one of standard, "),
        (STANDARD, "shared", 5, r"num_sublayers=5 does not divide 12 query heads: use one of 1, 2"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    stored, wiring, branches, message, tmp_path
):
    save(stored, tmp_path / "stored")
    with pytest.raises(KrakenError, match=message) as refused:
        rewire(tmp_path / "stored", tmp_path / "out", wiring=wiring, num_sublayers=branches)
    assert str(tmp_path / "stored") in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_tokenizer_and_generation_settings_come_along(tiny_model, tmp_path):
    config = read_config(tiny_model).replace(wiring="ladder", ffn_dim=32)
    save(config, tmp_path / "ladder")
    for path in tiny_model.glob("tokenizer*"):
        (tmp_path / "ladder" / path.name).write_bytes(path.read_bytes())
    rewire(tmp_path / "ladder", tmp_path / "out", wiring="lagged")
    kept = {path.name for path in (tmp_path / "ladder").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == kept
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] in (7, [7])


def test_a_folder_laid_out_in_another_number_format_is_read_in_that(tmp_path):
    save(STANDARD, tmp_path / "standard")
    lay_out(tmp_path / "standard", 3, torch.bfloat16)
    assert read_config(tmp_path / "standard").num_sublayers == 3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "standard").dtype == torch.bfloat16


def test_convert_says_that_another_function_must_be_trained_further(capfd, own_signals, tmp_path):
    save(STANDARD, tmp_path / "standard")
    made = tiny.call(
        capfd, "convert", tmp_path / "standard", tmp_path / "out", "--wiring", "shared", "-n", 2
    )
    assert made.code == 0
    assert read_config(tmp_path / "out").num_sublayers == 2
    half = tiny.call(capfd, "convert", tmp_path / "out", tmp_path / "half", "--message-parts", 2)
    assert (half.code, read_config(tmp_path / "half").message_parts) == (0, 2)
    assert "trained as another function (shared, 2 sub-layers): train" in half.err
    assert "trained as another function (standard, 1 sub-layers): train" in made.err
    again = tiny.call(capfd, "convert", tmp_path / "out", tmp_path / "one", "--wiring", "lagged")
    assert (again.code, read_config(tmp_path / "one").wiring) == (0, "lagged")
    same = tiny.call(capfd, "convert", tmp_path / "one", tmp_path / "copy", "-n", 4)
    assert same.code == 0
    assert "another function" not in same.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["standard", "out", "--wiring", "sharde"], "wiring='sharde': choose one of"),
        (["standard", "out", "--tokenizer", "gpt2"], "--tokenizer: a model folder brings its own"),
        (["nowhere.pt", "out", "--wiring", "shared"], "need a model, and nowhere.pt is none"),
        (["standard", "out", "-n", "0"], "num_sublayers=0: needs 1 or more"),
        (["standard", "out", "--message-parts", "2"], "message_parts=2: each AllReduce of a stand"),
        (["nowhere.pt", "out", "--message-parts", "2"], "--late-layers need a mod"),
    ],
)
def test_conversions_that_cannot_be_are_one_line(
    arguments, message, capfd, own_signals, monkeypatch, tmp_path
):
    save(STANDARD, tmp_path / "standard")
    monkeypatch.chdir(tmp_path)
    refused = tiny.call(capfd, "convert", *arguments)
    assert refused.code == 2
    assert [message in line for line in refused.complaints] == [True]
    assert not (tmp_path / "out").exists()
