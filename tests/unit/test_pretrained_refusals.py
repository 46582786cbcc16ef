"""What cannot be brought in or taken out is named in one line, and nothing is written."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import foreign
import tiny
from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.pretrained.configurations import understand

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = foreign.MODELS["llama, tied, llama3"]["rope_parameters"]
WITHOUT_FACTOR = {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "llama",
            {"model_type": "gemma2"},
            r"model_type='gemma2': models of this family.*llama, mi",
        ),
        ("llama", {"model_type": None}, r"model_type=None: models of this family"),
        ("llama", {"rope_parameters": YARN}, r"rope_type='yarn': frequencies of this kind"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_type='dynamic'"),
        (
            "llama",
            {
                "rope_scaling": {
                    "type": "longrope",
                    "factor": 2.0,
                    "short_factor": [1.0],
                    "long_factor": [1.0],
                }
            },
            r"rope_type='longrope'",
        ),
        (
            "qwen2, tied",
            {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1]}},
            r"rope_parameters has mrope_section=\[1, 1\], which rope_type='default' does not know",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor=0.5: models of this family",
        ),
        (
            "gpt_neox",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.01}},
            r"partial_rotary_factor=0.01",
        ),
        ("llama", {"attention_bias": True}, r"attention_bias=True: biases in one half of a layer"),
        ("llama", {"mlp_bias": True}, r"mlp_bias=True: biases in one half of a layer"),
        ("qwen3", {"attention_bias": True}, r"attention_bias=True: biases in one half"),
        ("gpt_neox", {"attention_bias": False}, r"attention_bias=False: biases in one half"),
        ("llama", {"hidden_act": "gelu"}, r"hidden_act='gelu': this activation.*silu, swish can"),
        ("gpt2", {"activation_function": "relu"}, r"activation_function='relu'"),
        ("gpt_neox", {"hidden_act": "quick_gelu"}, r"hidden_act='quick_gelu'"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            r"scale_attn_by_inverse_layer_idx=True",
        ),
        ("gpt2", {"reorder_and_upcast_attn": True}, r"reorder_and_upcast_attn=True"),
        ("gpt2", {"scale_attn_weights": False}, r"scale_attn_weights=False"),
        ("gpt2", {"add_cross_attention": True}, r"add_cross_attention=True: cross-attention"),
        ("llama", {"pretraining_tp": 2}, r"pretraining_tp=2: products in slices"),
        ("llama", {"is_causal": False}, r"is_causal=False: attention to later tokens"),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "more": "x" * 99}},
            r"quantization_config=\{'quant_method': 'gptq', .{0,40}\.\.\.: quantised weights",
        ),
        (
            "mistral",
            {"sliding_window": 64},
            r"sliding_window=64 is in use.*set max_position_embeddings=96 in config.json to 64",
        ),
        (
            "qwen2, tied",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            r"sliding_window=8 is in use",
        ),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            r"sliding_window=8 is in use",
        ),
        (
            "llama",
            {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
            r"layer_types='chunked_attention': layers of this kind",
        ),
        ("llama", {"num_local_experts": 8}, r"num_local_experts=8: experts cannot"),
        ("qwen3", {"moe_intermediate_size": 8}, r"moe_intermediate_size=8: experts cannot"),
        ("llama", {"final_logit_softcapping": 30.0}, r"final_logit_softcapping=30.0: soft caps"),
        ("llama", {"logits_scaling": 8.0}, r"logits_scaling=8.0: scaled logits cannot"),
        (
            "llama",
            {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
            r"auto_map names code of the model's own \(modeling_x.X\), which is not run",
        ),
        ("llama", {"hidden_size": "24"}, r"not a configuration that Transformers reads"),
        ("llama", {"rope_parameters": WITHOUT_FACTOR}, r"low_freq_factor"),
        ("llama", {"num_key_value_heads": 4}, r"kv_heads_per_sublayer=4 does not divide"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(name, changes, message):
    before = copy.deepcopy(changes)
    with pytest.raises(KrakenError, match=message) as refused:
        understand(given := {**foreign.MODELS[name], **changes})
    assert given == {**foreign.MODELS[name], **before}
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"pretraining_tp": 1, "num_experts": 0, "final_logit_softcapping": None}),
        ("llama", {"rope_interleaved": False, "is_llama_config": True, "auto_map": {}}),
        ("llama", {"rope_scaling": {"type": "default"}, "unsloth_version": "2026.1"}),
        ("mistral", {"sliding_window": 4096}),
        (
            "qwen2, tied",
            {"use_sliding_window": True, "sliding_window": 96, "max_window_layers": 1},
        ),
        ("qwen2, tied", {"use_mrope": False, "sliding_window": 8}),
        ("gpt2", {"n_ctx": 96, "task_specific_params": {"text-generation": {"do_sample": True}}}),
    ],
)
def test_keys_that_change_nothing_are_let_through(name, changes):
    known = foreign.MODELS[name]
    assert understand({**known, **changes}).config == understand(known).config


# Folders


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = foreign.tensors_in(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shards(folder: Path) -> None:
    model = foreign.make("llama")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def without_a_shard(folder: Path) -> None:
    shards(folder)
    next(iter(folder.glob("model-00002-*"))).unlink()


def without_a_shard_in_the_index(folder: Path) -> None:
    shards(folder)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    kept = {name: file for name, file in weight_map.items() if "-00002-" not in file}
    edit(index, weight_map=kept)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"code")


def with_biases(folder: Path) -> None:
    names = {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(48) for i in range(3)}
    rewrite(folder, lambda tensors: tensors.update({**names, "score.weight": torch.zeros(2, 24)}))


DAMAGES: list[tuple[Callable[[Path], Any], list[str], str]] = [
    (without_a_shard, [], "model-00002-of-00006.safetensors is missing: copy the checkpoint again"),
    (without_a_shard_in_the_index, [], "is missing: the checkpoint does not fit its config.json"),
    (cut_short, [], "model.safetensors is damaged or truncated"),
    (pickled, [], "holds no model.safetensors: files that may hold code are not read"),
    (
        lambda folder: (folder / "model.safetensors").unlink(),
        [],
        "holds no model.safetensors: give a folder with the weights of a model",
    ),
    (lambda folder: (folder / "config.json").unlink(), [], "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("{"), [], "not valid JSON"),
    (
        lambda folder: edit(folder / "config.json", model_type="bloom"),
        [],
        "model_type='bloom': models of this family cannot be brought in",
    ),
    (
        lambda folder: edit(folder / "config.json", intermediate_size=37),
        [],
        "tensor model.layers.0.mlp.gate_proj.weight has shape [36, 24] where config.json asks for "
        "[37, 24]",
    ),
    (
        lambda folder: rewrite(folder, lambda t: t.pop("model.norm.weight")),
        [],
        "tensor model.norm.weight is missing",
    ),
    (
        lambda folder: rewrite(folder, lambda t: t.pop("model.embed_tokens.weight")),
        [],
        "tensor model.embed_tokens.weight is missing",
    ),
    (
        lambda folder: rewrite(
            folder, lambda t: t.update({"model.norm.weight": torch.ones(24, dtype=torch.int8)})
        ),
        [],
        "tensor model.norm.weight holds I8",
    ),
    (
        with_biases,
        [],
        "a model of its config.json has no tensors model.layers.0.self_attn.q_proj.bias, "
        "model.layers.1.self_attn.q_proj.bias, model.layers.2.self_attn.q_proj.bias and 1 more",
    ),
    (lambda folder: None, ["-n", "2"], "num_sublayers=2 does not divide 3 key and value heads"),
    (lambda folder: None, ["--wiring", "kraken"], "standard and kraken differ in their weights"),
    (lambda folder: None, ["--late-layers", "1"], "all layers of a standard model are of one kind"),
    (lambda folder: None, ["--tokenizer", "./none"], "tokenizer ./none does not exist"),
    (
        lambda folder: None,
        ["--to", "transformers"],
        "model_type='llama' is not 'kraken'",
    ),
    (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        [],
        "cannot load tokenizer",
    ),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "theirs"
    foreign.make("llama").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("damage", "options", "message"), DAMAGES)
def test_damage_is_one_line_and_nothing_is_written(
    damage, options, message, llama, capfd, own_signals, monkeypatch, tmp_path
):
    folder = tmp_path / "theirs"
    shutil.copytree(llama, folder)
    damage(folder)
    before = tiny.snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    refused = tiny.call(capfd, "convert", "theirs", "out", *options)
    assert refused.code == 2
    assert [message in line for line in refused.complaints] == [True], refused.err
    assert tiny.snapshot(tmp_path) == before


def test_a_tokenizer_with_ids_outside_the_vocabulary_is_refused(
    tokenizer, capfd, own_signals, tmp_path
):
    foreign.make("llama", vocab_size=290).save_pretrained(tmp_path / "theirs")
    shutil.copy(Path(tokenizer) / "tokenizer.json", tmp_path / "theirs")
    refused = tiny.call(capfd, "convert", tmp_path / "theirs", tmp_path / "out")
    assert refused.code == 2
    assert "has ids up to 299 and the checkpoint a vocabulary of 290" in refused.complaints[0]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_behind(llama, capfd, own_signals, monkeypatch, tmp_path):
    def refuse(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("krakenlm.model.tensor_files.save_file", refuse)
    for options in ([], ["-n", "3"]):
        refused = tiny.call(capfd, "convert", llama, tmp_path / "out", *options)
        assert refused.code == 2
        assert "no space left" in refused.complaints[0]
        assert not any(tmp_path.iterdir())


# Models of ours


def save(config: ModelConfig, folder: Path) -> None:
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)


STANDARD = {"wiring": "standard", "num_sublayers": 1, "heads_per_sublayer": 4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "a kraken model has norms for each of its 2 sub-layers"),
        ({"wiring": "kraken-shared"}, "a kraken-shared model has norms for each of its 2"),
        (
            {"wiring": "shared"},
            "the late sums of a shared model are another function than any model of Transformers' "
            "own has: export a standard model",
        ),
        ({"wiring": "shared", "late_layers": "1"}, "the late sums of a shared model"),
        ({"wiring": "ladder"}, "convert --wiring standard` gives"),
        ({"wiring": "lagged-layer"}, "convert --wiring parallel` gives"),
        ({**STANDARD, "wiring": "parallel", "bias": True, "position": "rope"}, "parallel_norms=1"),
        (STANDARD, "no family that is known has such models: no "),
        ({**STANDARD, "norm": "rmsnorm", "position": "rope", "bias": True}, "activation='gelu'"),
    ],
)
def test_what_no_family_has_is_refused(fields, message, capfd, own_signals, tmp_path):
    save(tiny.model_config(**fields), tmp_path / "ours")
    refused = tiny.call(
        capfd, "convert", tmp_path / "ours", tmp_path / "out", "--to", "transformers"
    )
    assert refused.code == 2
    assert [message in line for line in refused.complaints] == [True], refused.err
    assert not (tmp_path / "out").exists()


def test_options_of_a_wiring_do_not_go_with_an_export(capfd, own_signals, tmp_path):
    for option in (["--wiring", "standard"], ["-n", "1"], ["--tokenizer", "gpt2"]):
        refused = tiny.call(
            capfd, "convert", tmp_path, tmp_path / "out", "--to", "transformers", *option
        )
        assert refused.code == 2
        assert "leave them out, or convert twice" in refused.complaints[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"bias": True},
        {"bias": True, "activation": "gelu-exact", "tie_word_embeddings": False},
        {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "head_dim": 6},
        {
            "norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qkv_bias": True,
            "kv_heads_per_sublayer": 2,
        },
        {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qk_norm": True},
        {"wiring": "shared", "bias": True},
        {
            "wiring": "parallel", "parallel_norms": 2, "bias": True, "position": "rope",
            "rotary_dim": 2,
        },
    ],
)  # fmt: skip
def test_a_model_that_was_trained_here_goes_out_where_a_family_has_it(fields, tmp_path):
    from krakenlm.integrations.pretrained.exporting import export_model

    save(tiny.model_config(**{**STANDARD, "initializer_range": 0.3, **fields}), tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "theirs")
    ours, theirs = (foreign.loaded(tmp_path / name) for name in ("ours", "theirs"))
    assert not type(theirs).__name__.startswith("Kraken")
    ids = torch.randint(tiny.VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        foreign.logits_of(theirs, ids), foreign.logits_of(ours, ids), atol=1e-5, rtol=0
    )
