"""GGUF files compute what the models do that they were made of."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import foreign
import tiny
from krakenlm.data.folder_tokenizer import read_tokenizer
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.integrations.pretrained.exporting import export_model
from krakenlm.integrations.pretrained.gguf_config import config_of
from krakenlm.integrations.pretrained.gguf_file import GgufSource
from krakenlm.integrations.pretrained.importing import import_model
from krakenlm.model.checkpoint import read_config, read_eos_token_ids

pytest.importorskip("gguf", reason="GGUF files need the package gguf: krakenlm[gguf]")

from gguf_files import WIDE, write


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", WIDE),
        ("llama, tied, llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("qwen2, tied", {}),
        ("qwen3", {"head_dim": 16}),
        ("gpt2", {}),
        ("gpt2, untied, another width", {"activation_function": "gelu_new", "n_inner": None}),
    ],
)
def test_a_file_of_plain_numbers_is_the_model_bit_for_bit(name, changes, tmp_path):
    model = foreign.make(name, **changes)
    model.save_pretrained(tmp_path / "theirs")
    source = GgufSource(write(model, tmp_path / "model.gguf"))
    import_model(source, tmp_path / "ours", num_sublayers=1)
    wanted = foreign.logits_of(model)
    found = foreign.logits_of(foreign.loaded(tmp_path / "ours"))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert export_model(tmp_path / "ours", tmp_path / "back") == model.config.model_type
    assert foreign.same_tensors(tmp_path / "theirs", tmp_path / "back")
    back = foreign.logits_of(foreign.loaded(tmp_path / "back"))
    torch.testing.assert_close(back, wanted, atol=1e-5, rtol=0)


def test_quantised_weights_are_those_that_transformers_reads(tokenizer, tmp_path):
    model = foreign.make("llama", **WIDE)
    path = write(model, tmp_path / "model.gguf", kind="Q8_0", words=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    import_model(GgufSource(path), tmp_path / "ours", num_sublayers=2)
    assert foreign.tensors_in(tmp_path / "ours")["lm_head.weight"].dtype == torch.float32
    found = foreign.logits_of(foreign.loaded(tmp_path / "ours"))
    torch.testing.assert_close(found, foreign.logits_of(theirs.eval()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "scale", "dtype"),
    [
        ("F16", 1.0, torch.float16),
        ("BF16", 1.0, torch.bfloat16),
        ("F16", 1.0001, torch.float32),
    ],
)
def test_16_bits_are_kept_where_that_loses_nothing(kind, scale, dtype, tmp_path):
    model = foreign.make("llama", **WIDE).to(
        getattr(torch, {"F16": "float16"}.get(kind, "bfloat16"))
    )
    model = model.float()
    model.model.norm.weight.data *= scale
    import_model(GgufSource(write(model, tmp_path / "m.gguf", kind=kind)), tmp_path / "ours")
    found = foreign.tensors_in(tmp_path / "ours")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert torch.equal(found["lm_head.weight"].float(), model.lm_head.weight)
    assert torch.equal(found["model.norm.weight"][0].float(), model.model.norm.weight)


def frequencies(model: Any) -> Tensor:
    """What a file has of llama3: plain frequencies over the stretched ones."""
    embedding = model.model.rotary_emb
    theta, width = model.config.rope_parameters["rope_theta"], model.config.head_dim
    plain = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    return plain / embedding.inv_freq


def llama3(original: int) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": original,
    }  # fmt: skip


def test_stretched_frequencies_of_llama3_are_recognised(tmp_path):
    model = foreign.make("llama", **{**WIDE, "head_dim": 32}, rope_parameters=llama3(8192))
    path = write(model, tmp_path / "m.gguf", tensors={"rope_freqs.weight": frequencies(model)})
    import_model(GgufSource(path), tmp_path / "ours")
    config = read_config(tmp_path / "ours")
    assert (config.rope_stretch, config.rope_factor, config.rope_original_context) == (
        "llama3", 32.0, 8192,
    )  # fmt: skip
    found = foreign.logits_of(foreign.loaded(tmp_path / "ours"))
    torch.testing.assert_close(found, foreign.logits_of(model), atol=1e-5, rtol=0)
    other = foreign.make("llama", **{**WIDE, "head_dim": 32}, rope_parameters=llama3(4096))
    path = write(other, tmp_path / "o.gguf", tensors={"rope_freqs.weight": frequencies(other)})
    with pytest.raises(KrakenError, match=r"o.gguf: rope_freqs.weight: frequencies divided by"):
        GgufSource(path)


def test_linearly_stretched_frequencies_are_read(tmp_path):
    scaling = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = foreign.make("llama", **WIDE, rope_parameters=scaling)
    extra = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    import_model(GgufSource(write(model, tmp_path / "m.gguf", extra=extra)), tmp_path / "ours")
    found = foreign.logits_of(foreign.loaded(tmp_path / "ours"))
    torch.testing.assert_close(found, foreign.logits_of(model), atol=1e-5, rtol=0)


def test_tokenizer_template_and_ends_come_along(tokenizer, tmp_path):
    extra = {"tokenizer.ggml.eot_token_id": 5}
    model = foreign.make("llama", **WIDE)
    path = write(model, tmp_path / "m.gguf", words=tokenizer, extra=extra)
    assert import_model(GgufSource(path), tmp_path / "ours").has_tokenizer
    wanted, text = load_tokenizer(tokenizer), "Document 7: word word\nend 49\n"
    words = load_tokenizer(tmp_path / "ours")
    assert words(text).input_ids == wanted(text).input_ids
    assert read_tokenizer(tmp_path / "ours").encode(text) == wanted(text).input_ids
    chat = words.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "<a>"
    assert read_eos_token_ids(tmp_path / "ours") == {wanted.eos_token_id, 5}


# What is refused


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return write(foreign.make("llama", **WIDE), path, words=tokenizer)


def with_a_bias(path: Path) -> None:
    model = foreign.make("llama", **WIDE)
    write(model, path, tensors={"blk.0.attn_q.bias": torch.zeros(64)})


def of_two_files(path: Path) -> None:
    write(foreign.make("llama", **WIDE), path, extra={"split.count": 2})


def without_a_tensor(path: Path) -> None:
    model = foreign.make("llama", **WIDE)
    model.model.layers[1].self_attn.k_proj = torch.nn.Identity()
    write(model, path)


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.write_bytes(b"GGUF"), "it is cut short, damaged or no GGUF file"),
    (lambda path: path.write_bytes(b""), "it is cut short, damaged or no GGUF file"),
    (lambda path: path.write_bytes(path.read_bytes()[:400]), "it is cut short, damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:9000]), "it is cut short, damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "it is cut short, damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-4]), "it is cut short, damaged"),
    (of_two_files, "is one of 2 parts: merge them first"),
    (with_a_bias, "has no tensors blk.0.attn_q.bias"),
    (without_a_tensor, "model.gguf: tensor blk.1.attn_k.weight is missing"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_one_line_and_nothing_is_written(
    damage, message, llama_file, capfd, own_signals, tmp_path
):
    path = Path(shutil.copy(llama_file, tmp_path))
    damage(path)
    refused = tiny.call(capfd, "convert", path, tmp_path / "out")
    assert refused.code == 2
    assert [message in line for line in refused.complaints] == [True], refused.err
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


def test_without_the_package_people_are_told_how_to_get_it(
    llama_file, capfd, own_signals, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused = tiny.call(capfd, "convert", llama_file, tmp_path / "out")
    assert refused.code == 2
    assert refused.complaints == [
        "krakenlm: GGUF files need the package gguf: pip install 'krakenlm[gguf]'"
    ]


def test_a_folder_with_a_file_in_it_leads_to_the_file(llama_file, capfd, own_signals, tmp_path):
    refused = tiny.call(capfd, "convert", llama_file.parent, tmp_path / "out")
    assert refused.code == 2
    assert f"give the file itself, {llama_file}" in refused.complaints[0]


FIELDS: dict[str, Any] = {
    "general.architecture": "llama", "llama.context_length": 96, "llama.embedding_length": 64,
    "llama.block_count": 3, "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"general.architecture": "gptneox"},
            r"general.architecture='gptneox': GGUF files of this",
        ),
        ({"llama.expert_count": 8}, r"llama.expert_count=8: what this key"),
        ({"llama.attention.sliding_window": 64}, r"llama.attention.sliding_window=64"),
        ({"llama.final_logit_softcapping": 30.0}, r"llama.final_logit_softcapping=30.0"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope.scaling.type='yarn': frequencies of this"),
        ({"llama.rope.dimension_count": 8}, r"rope.dimension_count=8: another width than that of"),
        ({"llama.attention.value_length": 8}, r"attention.value_length=8"),
        ({"llama.block_count": None}, r"llama.block_count is missing in the file"),
    ],
)
def test_metadata_that_cannot_be_represented_are_refused_by_name(changes, message):
    fields = {key: value for key, value in {**FIELDS, **changes}.items() if value is not None}
    with pytest.raises(KrakenError, match=message):
        config_of(fields, 310, [], [])


def test_metadata_that_change_nothing_are_let_through():
    plain = config_of(FIELDS, 310, [], [])
    more = {
        "llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.vocab_size": 310,
        "llama.rope.dimension_count": 16, "llama.attention.value_length": 16,
    }  # fmt: skip
    assert config_of({**FIELDS, **more}, 310, [], []) == plain
    assert plain["rope_theta"] == 10000.0 and plain["num_key_value_heads"] == 4
