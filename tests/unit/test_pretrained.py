"""Models of other families compute the same here, and go back bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

import foreign
import tiny
from krakenlm.data.folder_tokenizer import read_tokenizer
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.integrations.pretrained.exporting import export_model
from krakenlm.integrations.pretrained.importing import ORIGINAL_CONFIG, Imported, import_model
from krakenlm.integrations.pretrained.sources import FolderSource
from krakenlm.model.checkpoint import read_config, read_eos_token_ids
from krakenlm.model.tensor_files import Tensors, read_object, write_tensors
from reference import reference_logits


def bring_in(folder: Path, out: Path, **options: Any) -> Imported:
    return import_model(FolderSource(folder), out, **options)


def edit(path: Path, **changes: Any) -> None:
    """Other values in a JSON file; None takes a key out."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def assert_same_logits(folder: Path, model: Any) -> None:
    found, wanted = foreign.logits_of(foreign.loaded(folder)), foreign.logits_of(model)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", foreign.MODELS)
def test_each_family_computes_the_same_and_goes_back_bit_for_bit(name, tmp_path):
    model = foreign.make(name)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    imported = bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert not imported.rewired.is_another_function
    assert_same_logits(tmp_path / "ours", model)
    assert read_eos_token_ids(tmp_path / "ours") == {7}
    split = bring_in(tmp_path / "theirs", tmp_path / "split", num_sublayers=3)
    assert read_config(tmp_path / "split").num_sublayers == 3
    assert not split.rewired.is_another_function
    assert_same_logits(tmp_path / "split", model)
    for ours in ("ours", "split"):
        family = export_model(tmp_path / ours, tmp_path / f"{ours}, back")
        assert family == foreign.MODELS[name]["model_type"]
        back = tmp_path / f"{ours}, back"
        assert foreign.same_tensors(tmp_path / "theirs", back)
        assert torch.equal(foreign.logits_of(foreign.loaded(back)), foreign.logits_of(model))
        assert read_object(back / "config.json") == read_object(tmp_path / "theirs/config.json")
        assert not (back / ORIGINAL_CONFIG).exists()


@pytest.mark.parametrize("name", ["qwen3", "gpt_neox"])
def test_an_imported_model_is_what_its_formulas_say(name, tmp_path):
    """Which is asked of the naive reference, from weights that no code of the model has cut."""
    model = foreign.make(name).double()
    model.save_pretrained(tmp_path / "theirs")
    bring_in(tmp_path / "theirs", tmp_path / "ours")
    ids = foreign.IDS[:, :12]
    wanted = reference_logits(
        read_config(tmp_path / "ours"), foreign.tensors_in(tmp_path / "ours"), ids
    )
    torch.testing.assert_close(foreign.logits_of(model, ids), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", foreign.MODELS)
def test_without_the_original_configuration_a_family_is_found(name, tmp_path):
    """As after more training, which leaves that file behind."""
    model = foreign.make(name)
    model.save_pretrained(tmp_path / "theirs")
    bring_in(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "ours" / ORIGINAL_CONFIG).unlink()
    family = export_model(tmp_path / "ours", tmp_path / "back")
    known = foreign.MODELS[name]["model_type"]
    assert family == ("llama" if known == "mistral" else known)
    assert foreign.same_tensors(tmp_path / "theirs", tmp_path / "back")
    back = foreign.loaded(tmp_path / "back")
    assert (
        type(back).__name__
        == json.loads((tmp_path / "back/config.json").read_text())["architectures"][0]
    )
    assert torch.equal(foreign.logits_of(back), foreign.logits_of(model))
    assert back.config.eos_token_id == 7


def test_a_model_that_was_changed_gets_a_new_configuration_of_its_family(tmp_path):
    model = foreign.make("mistral")
    model.save_pretrained(tmp_path / "theirs")
    bring_in(tmp_path / "theirs", tmp_path / "ours")
    halved, grown = (foreign.loaded(tmp_path / "ours") for _ in range(2))
    halved.to(torch.bfloat16).save_pretrained(tmp_path / "halved")
    shutil.copy(tmp_path / "ours" / ORIGINAL_CONFIG, tmp_path / "halved")
    export_model(tmp_path / "halved", tmp_path / "half")
    wanted = read_object(tmp_path / "theirs/config.json")
    assert read_object(tmp_path / "half/config.json") == {**wanted, "dtype": "bfloat16"}
    grown.resize_token_embeddings(foreign.VOCABULARY + 2, mean_resizing=False)
    grown.to(torch.bfloat16).save_pretrained(tmp_path / "grown")
    shutil.copy(tmp_path / "ours" / ORIGINAL_CONFIG, tmp_path / "grown")
    assert export_model(tmp_path / "grown", tmp_path / "back") == "mistral"
    back = foreign.loaded(tmp_path / "back")
    assert (back.config.vocab_size, back.dtype) == (foreign.VOCABULARY + 2, torch.bfloat16)
    assert foreign.logits_of(back).shape[-1] == foreign.VOCABULARY + 2


@pytest.mark.parametrize("options", [{}, {"num_sublayers": 3}])
def test_number_formats_stay_what_they_are(options, tmp_path):
    model = foreign.make("gpt_neox").to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data = parameter.data.float() * 1.001
    model.save_pretrained(tmp_path / "theirs")
    bring_in(tmp_path / "theirs", tmp_path / "ours", **options)
    tensors = foreign.tensors_in(tmp_path / "ours")
    assert tensors["model.layers.1.norm_1.weight"].dtype == torch.float32
    assert tensors["model.layers.1.attention.qkv.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == "bfloat16"
    export_model(tmp_path / "ours", tmp_path / "back")
    assert foreign.same_tensors(tmp_path / "theirs", tmp_path / "back")


# Older checkpoints


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "spelling", "buffers"),
    [
        (
            "llama, linear, biases",
            {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"model.layers.{}.self_attn.rotary_emb.inv_freq": torch.zeros(2)},
        ),
        (
            "llama, tied, llama3",
            {
                "rope_theta": 500.0,
                "rope_scaling": {
                    key: value
                    for key, value in foreign.MODELS["llama, tied, llama3"][
                        "rope_parameters"
                    ].items()
                    if key != "rope_theta"
                },
            },
            {},
        ),
        ("llama", {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32"}, {}),
        (
            "gpt_neox",
            {"rotary_emb_base": 50, "rotary_pct": 0.25},
            {
                "gpt_neox.layers.{}.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
                "gpt_neox.layers.{}.attention.masked_bias": torch.tensor(-1e9),
                "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": torch.zeros(1),
            },
        ),
    ],
)
def test_older_spellings_and_buffers_are_read(name, spelling, buffers, tmp_path):
    model = foreign.make(name)
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    edit(folder / "config.json", rope_parameters=None, dtype=None, **spelling)
    weights = foreign.tensors_in(folder)
    extra = {key.format(i): value.clone() for key, value in buffers.items() for i in range(3)}
    rewrite(folder, {**weights, **extra})
    bring_in(folder, tmp_path / "ours")
    assert_same_logits(tmp_path / "ours", model)
    export_model(tmp_path / "ours", tmp_path / "back")
    rewrite(folder, weights)
    assert foreign.same_tensors(folder, tmp_path / "back")


def test_gpt2_without_its_prefix_and_with_its_masks(tmp_path):
    model = foreign.make("gpt2")
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    bare = {
        name.removeprefix("transformer."): tensor
        for name, tensor in foreign.tensors_in(folder).items()
    }
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4).tril() for i in range(3)}
    rewrite(folder, {**bare, **masks, "h.0.attn.masked_bias": torch.tensor(-1e4)})
    bring_in(folder, tmp_path / "ours")
    assert_same_logits(tmp_path / "ours", model)


@pytest.mark.parametrize("differs", [False, True])
def test_a_head_beside_a_tied_embedding_counts_where_it_differs(differs, tmp_path):
    """As Transformers 5 has it."""
    folder = tmp_path / "theirs"
    foreign.make("qwen2, tied").save_pretrained(folder)
    tensors = foreign.tensors_in(folder)
    head = tensors["model.embed_tokens.weight"].clone()
    rewrite(folder, {**tensors, "lm_head.weight": head.flip(0).contiguous() if differs else head})
    config = bring_in(folder, tmp_path / "ours").rewired.config
    assert config.tie_word_embeddings is not differs
    assert_same_logits(tmp_path / "ours", foreign.loaded(folder))
    export_model(tmp_path / "ours", tmp_path / "back")
    assert_same_logits(tmp_path / "back", foreign.loaded(folder))


def test_dropout_comes_along_where_it_is_one_for_all_places(tmp_path):
    foreign.make("gpt2").save_pretrained(tmp_path / "one")
    assert bring_in(tmp_path / "one", tmp_path / "a").rewired.config.dropout == 0.1
    foreign.make("gpt2", attn_pdrop=0.2).save_pretrained(tmp_path / "two")
    imported = bring_in(tmp_path / "two", tmp_path / "b")
    assert imported.rewired.config.dropout == 0.0
    assert "embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.1: left out" in imported.notes[0]


# What comes along, and the command


@pytest.fixture
def with_words(tokenizer, tmp_path) -> Path:
    """A model with a tokenizer, a chat template and settings for answers."""
    folder = tmp_path / "theirs"
    model = foreign.make("llama")
    model.generation_config.update(temperature=0.5, do_sample=True, eos_token_id=[7, 9])
    model.save_pretrained(folder)
    words = load_tokenizer(tokenizer)
    words.chat_template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    words.save_pretrained(folder)
    return folder


def test_tokenizer_template_and_generation_settings_come_along(with_words, tokenizer, tmp_path):
    assert bring_in(with_words, tmp_path / "ours").has_tokenizer
    bring_in(with_words, tmp_path / "split", num_sublayers=3)
    export_model(tmp_path / "split", tmp_path / "back")
    text = tiny.DOCUMENTS[3]
    wanted = load_tokenizer(tokenizer)(text).input_ids
    for folder in (tmp_path / name for name in ("ours", "split", "back")):
        words = AutoTokenizer.from_pretrained(folder)
        assert words(text).input_ids == wanted
        chat = words.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert chat == "<a>"
        generation = json.loads((folder / "generation_config.json").read_text())
        assert (generation["temperature"], generation["eos_token_id"]) == (0.5, [7, 9])
        assert read_tokenizer(folder).encode(text) == wanted
    assert read_eos_token_ids(tmp_path / "split") == {7, 9}
    assert foreign.loaded(tmp_path / "split").generation_config.do_sample


def test_ends_of_answers_are_known_where_generation_settings_leave_them_out(tmp_path):
    folder = tmp_path / "theirs"
    foreign.make("llama", eos_token_id=[7, 8]).save_pretrained(folder)
    edit(folder / "generation_config.json", eos_token_id=None, top_k=3)
    bring_in(folder, tmp_path / "ours")
    assert read_eos_token_ids(tmp_path / "ours") == {7, 8}
    generation = foreign.loaded(tmp_path / "ours").generation_config
    assert (generation.eos_token_id, generation.top_k) == ([7, 8], 3)
    (folder / "generation_config.json").unlink()
    bring_in(folder, tmp_path / "again", wiring="shared", num_sublayers=3)
    assert read_eos_token_ids(tmp_path / "again") == {7, 8}
    assert json.loads((tmp_path / "again/config.json").read_text())["eos_token_id"] == [7, 8]


def test_the_command_brings_in_rewires_and_writes_back(with_words, capfd, own_signals, tmp_path):
    plain = tiny.call(capfd, "convert", with_words, tmp_path / "plain")
    assert (plain.code, plain.complaints) == (0, [])
    assert "standard, N=1" in plain.out and "another function" not in plain.err
    late = tiny.call(
        capfd, "convert", with_words, tmp_path / "late", "--wiring", "shared", "-n", 3,
        "--late-layers", "1-2",
    )  # fmt: skip
    assert late.code == 0
    assert "trained as another function (standard, 1 sub-layers): train" in late.err
    config = read_config(tmp_path / "late")
    assert (config.wiring, config.num_sublayers, config.late_layers) == ("shared", 3, "1-2")
    same = tmp_path / "same"
    tiny.call(capfd, "convert", tmp_path / "plain", same, "--wiring", "shared", "-n", 3)
    assert foreign.same_tensors(tmp_path / "late", same)
    back = tiny.call(
        capfd, "convert", tmp_path / "plain", tmp_path / "back", "--to", "transformers"
    )
    assert (back.code, back.out) == (
        0,
        f"wrote {tmp_path / 'back'}: a llama model for Transformers\n",
    )
    assert foreign.same_tensors(with_words, tmp_path / "back")
    answered = tiny.call(
        capfd, "generate", tmp_path / "plain", "--prompt", "Document 3", "--max-new-tokens", 2
    )
    assert answered.code == 0


def test_another_tokenizer_may_be_given_and_none_is_said(tokenizer, capfd, own_signals, tmp_path):
    foreign.make("llama").save_pretrained(tmp_path / "theirs")
    without = tiny.call(capfd, "convert", tmp_path / "theirs", tmp_path / "without")
    assert without.code == 0 and "no tokenizer in it" in without.err
    given = tiny.call(
        capfd, "convert", tmp_path / "theirs", tmp_path / "given", "--tokenizer", tokenizer
    )
    assert given.code == 0 and "no tokenizer in it" not in given.err
    wanted = load_tokenizer(tokenizer).get_vocab()
    assert load_tokenizer(tmp_path / "given").get_vocab() == wanted


def test_tensors_are_written_in_files_of_a_size_and_read_back(tmp_path):
    tensors = {f"t{i}": torch.randn(4, 8) for i in range(5)}
    write_tensors(tensors.items(), tmp_path, file_bytes=200)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    with Tensors(tmp_path) as written:
        assert set(written.names) == set(tensors)
        assert all(torch.equal(written.slice_of(n, (4, 8))[:], t) for n, t in tensors.items())


def test_a_file_is_written_before_the_next_tensors_are_asked_for(tmp_path):
    """So that a model need not fit into memory."""
    on_disk = []

    def one_after_the_other():
        for i in range(5):
            on_disk.append(len(list(tmp_path.iterdir())))
            yield f"t{i}", torch.randn(4, 8)

    write_tensors(one_after_the_other(), tmp_path, file_bytes=200)
    assert on_disk == [0, 0, 1, 1, 2]
