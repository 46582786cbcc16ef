"""KrakenForCausalLM is a Hugging Face model like any other."""

import ast
import contextlib
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)

import krakenlm  # noqa: F401  (registers the Auto classes)
from krakenlm.config import WIRINGS
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.errors import ConfigError
from krakenlm.eval.model import load_causal_lm
from krakenlm.integrations.hf import KrakenForCausalLM, eager_attention
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.hf_trainer import checkpoint_activations

VOCAB = 29
SMALL: dict[str, Any] = {
    "num_sublayers": 2,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "heads_per_sublayer": 4,
    "kv_heads_per_sublayer": 2,
    "head_dim": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 32,
    "bias": True,
    "tie_word_embeddings": False,  # a tied head of random weights repeats its input
}

all_wirings = pytest.mark.parametrize("wiring", WIRINGS)


def make(dtype: torch.dtype = torch.float64, **options: Any) -> KrakenForCausalLM:
    """A small model with weights large enough that greedy tokens differ from prompt to prompt."""
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig(**{**SMALL, **options})).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.4)
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


# Saving and loading


@pytest.mark.parametrize("tied", [True, False])
@all_wirings
def test_save_and_load_round_trip(wiring, tied, tmp_path: Path) -> None:
    model = make(wiring=wiring, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    assert not list(tmp_path.glob("*.bin"))

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(loaded, KrakenForCausalLM)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert loaded.config.to_model_config() == model.config.to_model_config()
    assert set(loaded.state_dict()) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    # Not bit for bit: where the weights lie in memory decides how sums are grouped.
    torch.testing.assert_close(
        loaded(tokens(2, 5)).logits, model(tokens(2, 5)).logits, rtol=1e-12, atol=1e-12
    )


def test_heads_of_odd_width_pass_what_transformers_asks_of_rotary_positions() -> None:
    """vLLM calls these two on every configuration with ``rope_theta``, of learned positions too."""
    config = KrakenConfig(num_sublayers=2, hidden_size=62, heads_per_sublayer=2, head_dim=31)
    before = config.to_dict()
    config.standardize_rope_params()
    config.validate_rope()
    assert config.to_dict() == before, "what vLLM then reads as rotary positions"
    PreTrainedConfig.standardize_rope_params(config)
    assert config.to_dict() != before, "Transformers' own does as little: ours can go"


def test_every_flag_of_the_class_is_one_that_transformers_reads() -> None:
    """A flag that was renamed would be set and do nothing."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(KrakenForCausalLM)))
    flags = {
        target.id
        for line in tree.body[0].body
        if isinstance(line, ast.Assign)
        for target in line.targets
    }
    assert len(flags) > 8
    assert {name for name in flags if not hasattr(PreTrainedModel, name)} == set()


@pytest.mark.parametrize(
    "imports",
    ["import krakenlm; import transformers", "import transformers; import krakenlm"],
    ids=["krakenlm-first", "transformers-first"],
)
def test_auto_classes_in_a_fresh_process(imports, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    script = (
        f"{imports}\n"
        f"config = transformers.AutoConfig.from_pretrained({str(tmp_path)!r})\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        "assert type(config) is krakenlm.KrakenConfig, type(config)\n"
        "assert type(model) is krakenlm.KrakenForCausalLM, type(model)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_key_in_config_json_is_named(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hiden_size": 12}))
    with pytest.raises(ConfigError, match=r"'hiden_size'.*'hidden_size'"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="hiden_size"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_no_code_that_lies_in_a_folder_is_run(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    folder, trace = tmp_path / "model", tmp_path / "trace"
    make(vocab_size=300).save_pretrained(folder)
    load_tokenizer(tokenizer).save_pretrained(folder)
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Their: ...\n")
    maps = {
        "config.json": {"AutoConfig": "code.Their", "AutoModelForCausalLM": "code.Their"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "code.Their"]},
    }
    for name, auto_map in maps.items():
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "auto_map": auto_map}))
    assert isinstance(load_causal_lm(folder), KrakenForCausalLM)
    assert load_tokenizer(folder)("a").input_ids
    assert not trace.exists()
    # The same files do run where a user allows it: they are such code, if of no use.
    with contextlib.suppress(AttributeError):
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()


# Initial weights


def expected_std(name: str, config: KrakenConfig) -> float:
    if not name.endswith(("attention.output.weight", "feed_forward.down.weight")):
        return 0.02
    # Outputs of Kraken's sub-layers meet; those of other branches are parts of one.
    streams = config.num_sublayers if "kraken" in config.wiring else 1
    return 0.02 / (2 * config.num_hidden_layers * streams) ** 0.5


def assert_initial(name: str, parameter: Tensor, config: KrakenConfig) -> None:
    if name.endswith(".bias"):
        assert not parameter.any(), name
    elif "norm" in name:
        assert (parameter == 1).all(), name
    else:
        assert parameter.mean().abs() < 0.002, name
        assert parameter.std().item() == pytest.approx(expected_std(name, config), rel=0.05), name


@all_wirings
def test_initial_weights_have_the_authors_scales(wiring, tmp_path: Path) -> None:
    config = KrakenConfig(
        **{**SMALL, "hidden_size": 64, "head_dim": 16, "vocab_size": 200}, wiring=wiring
    )
    model = KrakenForCausalLM(config)
    for name, parameter in model.named_parameters():
        assert_initial(name, parameter, config)

    # Loading keeps what is stored, and draws what is missing at the same scale.
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    missing = [name for name in stored if ".layers.1." in name or name == "model.norm.weight"]
    for name in missing:
        del stored[name]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = dict(KrakenForCausalLM.from_pretrained(tmp_path).named_parameters())
    for name, parameter in loaded.items():
        assert_initial(name, parameter, config)
        assert name in missing or torch.equal(parameter, stored[name]), name
    assert len(missing) > 5


def test_the_conjunction_may_start_as_the_mean_of_the_streams() -> None:
    model = KrakenForCausalLM(KrakenConfig(**SMALL, conjunction_init="mean"))
    weight_NDD = model.model.conjunction.weight
    y_N1TD = torch.randn(SMALL["num_sublayers"], 1, 3, SMALL["hidden_size"])
    joined = model.model.conjunction(y_N1TD).sum(0)
    torch.testing.assert_close(joined, y_N1TD.mean(0))
    assert weight_NDD.requires_grad


def test_branch_outputs_may_start_at_the_scale_of_a_single_stream() -> None:
    wide = {**SMALL, "hidden_size": 64, "head_dim": 16, "vocab_size": 200}
    own, all_streams = (
        dict(KrakenForCausalLM(KrakenConfig(**wide, output_init=kind)).named_parameters())
        for kind in ("own-stream", "all-streams")
    )
    for name, parameter in own.items():
        scaled = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        ratio = SMALL["num_sublayers"] ** 0.5 if scaled else 1.0
        if parameter.std() > 0:
            found = (parameter.std() / all_streams[name].std()).item()
            assert found == pytest.approx(ratio, rel=0.05), name


# Keywords


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("atention_mask", "did you mean 'attention_mask'"),
        ("past_key_value", "did you mean 'past_key_values'"),
        ("num_item_in_batch", "did you mean 'num_items_in_batch'"),
        ("token_type_ids", ""),
        ("cache_position", ""),
        ("xyz", ""),
    ],
)
def test_a_keyword_that_nobody_knows_is_refused_by_name(keyword, hint) -> None:
    message = rf"KrakenForCausalLM\.forward\(\) got an unknown keyword '{keyword}'.*{hint}"
    with pytest.raises(TypeError, match=message):
        make()(tokens(1, 3), **{keyword: None})


@pytest.mark.parametrize(
    ("keyword", "harmless", "refused"),
    [
        ("output_hidden_states", False, True),
        ("output_attentions", False, True),
        ("output_router_logits", False, True),
        ("is_causal", True, False),
        ("seq_idx", None, torch.zeros(1, 3, dtype=torch.int)),
    ],
)
def test_what_the_model_does_not_do_is_refused_only_where_it_is_asked_for(
    keyword, harmless, refused
) -> None:
    model, ids = make(), tokens(1, 3)
    with torch.no_grad():
        wanted = model(ids).logits
        for value in (None, harmless):
            assert torch.equal(model(ids, **{keyword: value}).logits, wanted)
        with pytest.raises(ConfigError, match=f"{keyword}="):
            model(ids, **{keyword: refused})


def test_what_a_configuration_asks_for_and_the_model_does_not_do_is_refused() -> None:
    model = make()
    model.config.output_hidden_states = True
    with pytest.raises(ConfigError, match="output_hidden_states=True"):
        model(tokens(1, 3))


def test_keywords_of_attention_and_loss_arrive_there(monkeypatch) -> None:
    model, ids = make(), tokens(2, 5)
    with torch.no_grad():
        mean = model(ids, labels=ids).loss
        # The sum over 8 predictions, divided by what the caller says they are.
        assert model(ids, labels=ids, num_items_in_batch=16).loss.item() == pytest.approx(
            mean.item() / 2, rel=1e-6
        )
        everything = torch.full_like(ids, 3)
        shifted = model(ids, labels=ids, shift_labels=everything).loss
        assert shifted.item() != pytest.approx(mean.item(), rel=1e-3)
        seen: list[dict[str, Any]] = []

        def watched(module: nn.Module, *tensors: Tensor, temperature: float = 1.0, **rest: Any):
            seen.append({"temperature": temperature, **rest})
            return eager_attention(module, *tensors, **rest)

        AttentionInterface.register("watched", watched)
        model.set_attn_implementation("watched")
        model(ids, temperature=2.0, cu_seq_lens_q=None)
    assert len(seen) == 3 and all(s["temperature"] == 2.0 for s in seen)
    assert all("cu_seq_lens_q" in s for s in seen)
    with pytest.raises(TypeError, match="'temperture': did you mean 'temperature'"):
        model(ids, temperture=2.0)


def test_an_answer_may_be_a_tuple() -> None:
    model, ids = make(), tokens(1, 3)
    logits, cache = model(ids, return_dict=False)
    assert torch.equal(logits, model(ids).logits) and cache.get_seq_length() == 3


# Loss and training


def test_loss_is_the_cross_entropy_of_the_next_token() -> None:
    model = make()
    ids = tokens(3, 7)
    labels = ids.clone()
    labels[0, 3:] = -100
    found = model(ids, labels=labels)
    chances = found.logits.softmax(-1)
    losses = [
        -chances[row, place, labels[row, place + 1]].log()
        for row in range(3)
        for place in range(6)
        if labels[row, place + 1] != -100
    ]
    # Transformers computes the loss in float32.
    assert found.loss.item() == pytest.approx((sum(losses) / len(losses)).item(), rel=1e-6)


@all_wirings
def test_gradient_checkpointing_gives_the_same_gradients(wiring) -> None:
    model = make(wiring=wiring).train()
    ids = tokens(2, 6)
    calls: list[int] = []
    model.model.layers[1].attention.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients() -> tuple[Tensor, ...]:
        calls.clear()
        return torch.autograd.grad(model(ids, labels=ids).loss, tuple(model.parameters()))

    wanted = gradients()
    assert len(calls) == 1
    checkpoint_activations(model)
    found = gradients()
    assert len(calls) == 2, "the layer was not computed again"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    checkpoint_activations(model, on=False)
    gradients()
    assert len(calls) == 1


def test_dropout_acts_in_training_only() -> None:
    model = make(dropout=0.3)
    ids = tokens(2, 6)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model(ids).logits, make(dropout=0.0)(ids).logits)
    model.train()
    assert not torch.allclose(model(ids).logits, model(ids).logits)


# Kernels and precisions


@all_wirings
def test_compiled_equals_eager(wiring) -> None:
    torch.compiler.reset()  # it compiles the same code for a limited number of models
    model = make(torch.float32, wiring=wiring, num_hidden_layers=2)
    # The whole tool chain once; for the others, that one graph is captured and differentiable.
    backend = "inductor" if wiring == "kraken" else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ids = tokens(2, 6)
    torch.testing.assert_close(
        compiled(ids, use_cache=False).logits, model(ids).logits, rtol=1e-4, atol=1e-4
    )


@all_wirings
def test_bfloat16_is_finite_and_near_float32(wiring) -> None:
    model = KrakenForCausalLM(KrakenConfig(**SMALL, wiring=wiring)).eval()
    with torch.no_grad():
        wanted = model(tokens(2, 9)).logits
        found = model.bfloat16()(tokens(2, 9)).logits
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    # bfloat16 keeps 8 bits: 0.4% of the largest logit a rounding, a few of them in a row.
    assert (found.float() - wanted).abs().max() < 0.03 * wanted.abs().max()


@all_wirings
def test_eager_attention_equals_sdpa(wiring) -> None:
    model = make(torch.float32, wiring=wiring)
    ids = tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    wanted = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    found = model(ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(found[real], wanted[real], rtol=1e-4, atol=1e-4)


# GPT-2


def test_standard_wiring_is_gpt2() -> None:
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=12, n_layer=3, n_head=3)
    )
    gpt2 = gpt2.double().eval()
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.normal_(std=0.4)
    config = KrakenConfig(
        wiring="standard",
        num_sublayers=1,
        hidden_size=12,
        num_hidden_layers=3,
        heads_per_sublayer=3,
        vocab_size=VOCAB,
        max_position_embeddings=16,
        bias=True,
    )
    model = KrakenForCausalLM(config).double().eval()
    model.load_state_dict(from_gpt2(gpt2))
    ids = tokens(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, gpt2(ids).logits, rtol=1e-9, atol=1e-9)


def from_gpt2(gpt2: GPT2LMHeadModel) -> dict[str, Tensor]:
    """Our names for GPT-2's tensors; its Conv1D stores weights as [inputs, outputs]."""
    body = gpt2.transformer
    state = {
        "model.embed_tokens.weight": body.wte.weight,
        "lm_head.weight": body.wte.weight,
        "model.embed_positions.weight": body.wpe.weight,
        "model.norm.weight": body.ln_f.weight[None],
        "model.norm.bias": body.ln_f.bias[None],
    }
    for index, block in enumerate(body.h):
        maps: dict[str, tuple[nn.Module, bool]] = {
            "norm_1": (block.ln_1, False),
            "norm_2": (block.ln_2, False),
            "attention.qkv": (block.attn.c_attn, True),
            "attention.output": (block.attn.c_proj, True),
            "feed_forward.up": (block.mlp.c_fc, True),
            "feed_forward.down": (block.mlp.c_proj, True),
        }
        for name, (module, transposed) in maps.items():
            weight = module.weight.T if transposed else module.weight
            state[f"model.layers.{index}.{name}.weight"] = weight[None]
            state[f"model.layers.{index}.{name}.bias"] = module.bias[None]
    return state
