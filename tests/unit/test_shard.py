"""How a model is divided, and that a rank reads only what it holds."""

import dataclasses
import itertools

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig

from krakenlm.config import TRANSFORMERS_KEYS, ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.model import checkpoint
from krakenlm.model.checkpoint import read_config, read_eos_token_ids, read_shard
from krakenlm.model.decoder import Decoder
from krakenlm.model.shard import split, units_of

KRAKEN = ModelConfig(
    wiring="kraken", num_sublayers=6, hidden_size=16, num_hidden_layers=2, heads_per_sublayer=2,
    head_dim=6, ffn_dim=10, vocab_size=40, max_position_embeddings=16, bias=True,
)  # fmt: skip
STANDARD = ModelConfig(
    wiring="standard", num_sublayers=2, hidden_size=16, num_hidden_layers=2, heads_per_sublayer=6,
    kv_heads_per_sublayer=3, head_dim=4, ffn_dim=22, vocab_size=40, max_position_embeddings=16,
    bias=True, activation="swiglu",
)  # fmt: skip


def save(config: ModelConfig, directory) -> None:
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config, eos_token_id=7))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)


@pytest.mark.parametrize("config", [KRAKEN, STANDARD], ids=["kraken", "standard"])
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 6])
def test_split_covers_every_unit_once_and_evenly(config, devices):
    shards = split(config, devices)
    units = [unit for shard in shards for unit in range(shard.first, shard.end)]
    columns = [column for shard in shards for column in shard.ffn_columns]
    counts = [shard.count for shard in shards]
    assert units == list(range(units_of(config)))
    assert columns == list(range(config.num_sublayers * config.ffn_dim))
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("config", [KRAKEN, STANDARD], ids=["kraken", "standard"])
def test_more_devices_than_units_is_refused(config):
    with pytest.raises(KrakenError, match=r"--devices 7.*at most 6"):
        split(config, 7)
    with pytest.raises(KrakenError, match="needs 1 or more"):
        split(config, 0)


@pytest.mark.parametrize("config", [KRAKEN, STANDARD], ids=["kraken", "standard"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_shards_fill_the_decoder_of_their_local_config(config, devices, tmp_path):
    save(config, tmp_path)
    for shard in split(config, devices):
        state = read_shard(tmp_path, shard, torch.float32)
        wanted = Decoder(shard.local_config).state_dict()
        assert {name: t.shape for name, t in state.items()} == {
            name: t.shape for name, t in wanted.items()
        }


class CountingFile:
    """A safetensors file that counts the elements handed out."""

    read = 0

    def __init__(self, path, framework):
        self._file = safe_open(path, framework=framework)

    def keys(self):
        return self._file.keys()

    def get_slice(self, name):
        return CountingSlice(self._file.get_slice(name))


class CountingSlice:
    def __init__(self, lazy):
        self._lazy = lazy

    def get_shape(self):
        return self._lazy.get_shape()

    def get_dtype(self):
        return self._lazy.get_dtype()

    def __getitem__(self, index):
        tensor = self._lazy[index]
        CountingFile.read += tensor.numel()
        return tensor


@pytest.mark.parametrize("config", [KRAKEN, STANDARD], ids=["kraken", "standard"])
def test_a_rank_reads_no_element_that_it_does_not_hold(config, tmp_path, monkeypatch):
    save(config, tmp_path)
    monkeypatch.setattr(checkpoint, "safe_open", CountingFile)
    for shard in split(config, 3):
        CountingFile.read = 0
        state = read_shard(tmp_path, shard, torch.float32)
        zeros = sum(t.numel() for n, t in state.items() if not t.any() and shard.first)
        held = sum(tensor.numel() for tensor in state.values())
        # Biases that another rank brings are made here, not read.
        assert CountingFile.read == held - zeros


def test_shards_of_a_split_add_up_to_the_whole(tmp_path):
    save(KRAKEN, tmp_path)
    whole = read_shard(tmp_path, split(KRAKEN, 1)[0], torch.float64)
    parts = [read_shard(tmp_path, shard, torch.float64) for shard in split(KRAKEN, 4)]
    for name, tensor in whole.items():
        pieces = [part[name] for part in parts]
        if name == "conjunction.bias":
            assert torch.equal(sum(pieces), tensor)
        elif name.startswith(("layers.", "conjunction.")):
            assert torch.equal(torch.cat(pieces), tensor)
        else:
            assert all(torch.equal(piece, tensor) for piece in pieces)


def test_a_checkpoint_in_several_files_is_read_through_its_index(tmp_path):
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(KRAKEN))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for shard in split(KRAKEN, 2):
        one = read_shard(tmp_path / "one", shard, torch.float32)
        many = read_shard(tmp_path / "many", shard, torch.float32)
        assert one.keys() == many.keys()
        assert all(torch.equal(one[name], many[name]) for name in one)


def test_untied_head_is_read_too(tmp_path):
    config = KRAKEN.replace(tie_word_embeddings=False)
    save(config, tmp_path)
    state = read_shard(tmp_path, split(config, 2)[1], torch.float32)
    assert state["lm_head.weight"].shape == (config.vocab_size, config.hidden_size)


def rewrite(directory, change) -> None:
    file = directory / "model.safetensors"
    with safe_open(file, framework="pt") as tensors:
        state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def test_damage_is_named(tmp_path):
    save(KRAKEN, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    (shard,) = split(KRAKEN, 1)

    file.write_bytes(whole[:-100])
    with pytest.raises(KrakenError, match=r"model\.safetensors is damaged or truncated"):
        read_shard(tmp_path, shard, torch.float32)

    file.write_bytes(whole)
    rewrite(tmp_path, lambda state: state.pop("model.norm.weight"))
    with pytest.raises(KrakenError, match=r"model\.norm\.weight is missing"):
        read_shard(tmp_path, shard, torch.float32)

    file.write_bytes(whole)
    name = "model.layers.1.attention.qkv.weight"
    rewrite(tmp_path, lambda state: state.update({name: state[name][:, :-1].contiguous()}))
    with pytest.raises(KrakenError, match=r"qkv\.weight has shape \[6, 35, 16\].*\[6, 36, 16\]"):
        read_shard(tmp_path, shard, torch.float32)

    file.unlink()
    with pytest.raises(KrakenError, match=r"holds no model\.safetensors"):
        read_shard(tmp_path, shard, torch.float32)


def test_configuration_is_read_strictly(tmp_path):
    save(KRAKEN, tmp_path)
    assert read_config(tmp_path) == KRAKEN
    assert read_eos_token_ids(tmp_path) == {7}
    file = tmp_path / "config.json"
    text = file.read_text()
    for old, new, message in (
        ('"hidden_size"', '"hiden_size"', "did you mean 'hidden_size'"),
        ('"kraken"', '"gpt2"', "model_type='gpt2'"),
        ("{", "", "not valid JSON"),
    ):
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(KrakenError, match=message):
            read_config(tmp_path)
    with pytest.raises(KrakenError, match=r"config\.json is missing"):
        read_config(tmp_path / "nowhere")


def test_devices_without_a_column_of_the_feed_forward_are_refused():
    config = STANDARD.replace(ffn_dim=1)
    assert [len(shard.ffn_columns) for shard in split(config, 2)] == [1, 1]
    with pytest.raises(KrakenError, match="--devices 3: ffn_dim=1 has no column for each"):
        split(config, 3)


def test_integer_weights_and_wrong_indexes_are_refused(tmp_path):
    save(KRAKEN, tmp_path)
    (shard,) = split(KRAKEN, 1)
    name = "model.embed_tokens.weight"
    rewrite(tmp_path, lambda state: state.update({name: state[name].to(torch.int8)}))
    with pytest.raises(KrakenError, match=r"embed_tokens\.weight holds I8"):
        read_shard(tmp_path, shard, torch.float32)
    rewrite(tmp_path, lambda state: state.pop(name))
    file = tmp_path / "model.safetensors"
    file.rename(tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.embed_tokens.weight": "part.safetensors"}}')
    with pytest.raises(KrakenError, match=r"part\.safetensors lacks tensor model\.embed_tokens"):
        read_shard(tmp_path, shard, torch.float32)
    index.write_text('{"weight_map": []}')
    with pytest.raises(KrakenError, match="has no weight_map"):
        read_shard(tmp_path, shard, torch.float32)


def test_configuration_with_what_transformers_adds_is_read(tmp_path):
    config = KrakenConfig.from_model_config(
        KRAKEN, num_labels=3, problem_type="regression", return_dict=False, bos_token_id=1
    )
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path) == KRAKEN


def test_every_key_that_transformers_may_write_is_known():
    written = KrakenConfig.from_model_config(KRAKEN).to_dict().keys() - KRAKEN.to_dict().keys()
    fields = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    assert (written | fields) - {"_name_or_path"} <= TRANSFORMERS_KEYS


def test_every_split_of_many_shapes_is_a_legal_model():
    for sublayers, heads, groups, devices in itertools.product((1, 2), (4, 6), (1, 2), (1, 2)):
        config = STANDARD.replace(
            num_sublayers=sublayers, heads_per_sublayer=heads, kv_heads_per_sublayer=groups
        )
        if devices <= units_of(config):
            local = [shard.local_config for shard in split(config, devices)]
            assert sum(c.num_attention_heads for c in local) == config.num_attention_heads
            assert sum(c.num_key_value_heads for c in local) == config.num_key_value_heads
