"""How a model is divided, and that a rank reads only what it holds."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from krakenlm.config import ModelConfig, count_parameters, laid_out, model_config, rewired
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.model import tensor_files
from krakenlm.model.attention import AttentionContext, SdpaCore
from krakenlm.model.checkpoint import (
    read_config,
    read_eos_token_ids,
    read_shard,
    stream_shard,
)
from krakenlm.model.decoder import Decoder
from krakenlm.model.rotary import rotary
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
GROUPED = ModelConfig(
    wiring="kraken", num_sublayers=5, hidden_size=12, num_hidden_layers=2, heads_per_sublayer=6,
    kv_heads_per_sublayer=3, head_dim=4, ffn_dim=11, vocab_size=23, max_position_embeddings=16,
    bias=True, activation="swiglu", position="rope",
)  # fmt: skip
# One stream for six branches, which a rank holds whole.
SHARED = STANDARD.replace(
    wiring="shared", num_sublayers=6, heads_per_sublayer=4, kv_heads_per_sublayer=2
)
CONFIGS = {
    "kraken": KRAKEN, "standard": STANDARD, "gqa": GROUPED, "shared": SHARED,
    "kraken-shared": GROUPED.replace(wiring="kraken-shared"),
}  # fmt: skip


def save(config: ModelConfig, directory) -> None:
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config, eos_token_id=7))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)


@pytest.mark.parametrize("config", [KRAKEN, STANDARD, SHARED], ids=["kraken", "standard", "shared"])
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 6])
def test_split_covers_every_unit_once_and_evenly(config, devices):
    shards = split(config, devices)
    units = [unit for shard in shards for unit in range(shard.first, shard.end)]
    columns = [column for shard in shards for column in shard.ffn_columns]
    rows = [row for shard in shards for row in shard.head_rows]
    assert units == list(range(units_of(config)))
    assert rows == list(range(config.vocab_size))
    for counts in ([s.count for s in shards], [len(s.head_rows) for s in shards]):
        assert max(counts) - min(counts) <= 1
    if config.traits.depends_on_degree:
        assert columns == list(range(config.ffn_dim)) * devices
    else:
        assert columns == list(range(config.num_sublayers * config.ffn_dim))


@pytest.mark.parametrize("config", [KRAKEN, STANDARD, SHARED], ids=["kraken", "standard", "shared"])
@pytest.mark.parametrize("placement", [(6,), (5, 1), (1, 5), (1, 2, 3), (2, 1, 1, 2), (1,) * 6])
def test_placement_says_how_many_units_each_rank_gets(config, placement):
    shards = split(config, len(placement), placement=placement)
    assert tuple(shard.count for shard in shards) == placement
    assert [unit for s in shards for unit in range(s.first, s.end)] == list(range(6))


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 5, 11])
def test_head_rows_are_shared_out_among_all_ranks_whatever_the_vocabulary(vocabulary):
    shards = split(
        GROUPED.replace(vocab_size=vocabulary), 6, tensor_parallel=2, placement=(3, 1, 1)
    )
    sizes = [len(shard.head_rows) for shard in shards]
    assert [row for shard in shards for row in shard.head_rows] == list(range(vocabulary))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("tensor_parallel", [1, 2, 3])
@pytest.mark.parametrize("placement", [(5,), (3, 2), (1, 3, 1)])
def test_ranks_of_a_group_share_its_sublayers_evenly(placement, tensor_parallel):
    devices = len(placement) * tensor_parallel
    shards = split(GROUPED, devices, placement=placement, tensor_parallel=tensor_parallel)
    assert [(s.rank, s.ranks) for s in shards] == [(rank, devices) for rank in range(devices)]
    for shard in shards:
        inner = [shards[rank] for rank in shard.inner_ranks]
        outer = [shards[rank] for rank in shard.outer_ranks]
        assert shard in inner
        assert shard in outer
        assert {(s.first, s.end) for s in inner} == {(shard.first, shard.end)}
        assert [s.tensor_index for s in inner] == list(range(tensor_parallel))
        assert [head for s in inner for head in s.kv_heads] == [0, 1, 2]
        assert [column for s in inner for column in s.ffn_columns] == list(range(11))
        assert max(len(s.ffn_columns) for s in inner) - min(len(s.ffn_columns) for s in inner) <= 1
        assert {s.tensor_index for s in outer} == {shard.tensor_index}
        assert [unit for s in outer for unit in range(s.first, s.end)] == list(range(5))
        local = shard.local_config
        assert (local.num_sublayers, local.head_dim) == (shard.count, GROUPED.head_dim)
        assert local.heads_per_sublayer == 2 * len(shard.kv_heads)


@pytest.mark.parametrize("config", [KRAKEN, STANDARD, SHARED], ids=["kraken", "standard", "shared"])
def test_more_devices_than_units_is_refused(config):
    with pytest.raises(KrakenError, match=r"--devices 7.*at most 6"):
        split(config, 7)
    with pytest.raises(KrakenError, match="needs 1 or more"):
        split(config, 0)


@pytest.mark.parametrize(
    ("config", "devices", "options", "message"),
    [
        (KRAKEN, 2, {"placement": (3, 2, 1)}, r"--placement 3,2,1: 3 given, but --devices 2"),
        (KRAKEN, 2, {"placement": (6, 0)}, r"--placement 6,0: each rank needs 1 or more"),
        (KRAKEN, 2, {"placement": (7, -1)}, r"--placement 7,-1: each rank needs 1 or more"),
        (KRAKEN, 2, {"placement": (3, 1)}, r"--placement 3,1 adds up to 4.* 6 sub-layers"),
        (STANDARD, 2, {"placement": (6, 1)}, r"adds up to 7.* 6 key and value heads.*make it 6"),
        (
            GROUPED, 4, {"placement": (3, 1, 1, 1), "tensor_parallel": 2},
            r"--placement 3,1,1,1: 4 given, but --devices 4 asks for 2: .*each group of 2 ranks",
        ),
        (GROUPED, 5, {"tensor_parallel": 2}, r"--devices 5 is not .*-parallel 2: use 4 or 6"),
        (GROUPED, 2, {"tensor_parallel": 3}, r"--devices 2 is not .*-parallel 3: use 3"),
        (GROUPED, 4, {"tensor_parallel": 4}, r"--tensor-parallel 4: .* 3 key and value.*most 3"),
        (
            GROUPED.replace(ffn_dim=2), 3, {"tensor_parallel": 3},
            r"--tensor-parallel 3: .* 2 feed-forward columns.*at most 2",
        ),
        (GROUPED, 12, {"tensor_parallel": 2}, r"--devices 12: .*6 groups of 2: use at most 10"),
        (GROUPED, 4, {"tensor_parallel": 0}, r"--tensor-parallel 0: needs 1 or more"),
        (STANDARD, 4, {"tensor_parallel": 2}, r"parallel already: leave it out and raise"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(config, devices, options, message):
    with pytest.raises(KrakenError, match=message) as refused:
        split(config, devices, **options)
    assert "\n" not in str(refused.value)


def splits(config: ModelConfig, devices: int):
    """Even, uneven and, for Kraken, tensor-parallel ways to use so many devices."""
    units = units_of(config)
    yield split(config, devices)
    yield split(config, devices, placement=(units - devices + 1, *(1,) * (devices - 1)))
    if config.traits.depends_on_degree and devices % 2 == 0:
        yield split(config, devices, tensor_parallel=2)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_shards_fill_the_decoder_of_their_local_config(config, devices, tmp_path):
    save(config, tmp_path)
    for shard in itertools.chain(*splits(config, devices)):
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


def brought_by_another_rank(name: str, shard) -> bool:
    """Biases of which this rank makes zeros instead of reading them."""
    if name == "conjunction.bias":
        return shard.first > 0
    summed = name.endswith(("attention.output.bias", "feed_forward.down.bias"))
    own = shard.config.traits.own_norms
    return summed and (shard.tensor_index > 0 or (shard.first > 0 and not own))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("devices", [3, 4])
def test_a_rank_reads_no_element_that_it_does_not_hold(
    config, devices, tied, tmp_path, monkeypatch
):
    config = config.replace(tie_word_embeddings=tied)
    save(config, tmp_path)
    monkeypatch.setattr(tensor_files, "safe_open", CountingFile)
    for shard in itertools.chain(*splits(config, devices)):
        CountingFile.read = 0
        state = read_shard(tmp_path, shard, torch.float32)
        made = {name for name in state if brought_by_another_rank(name, shard)}
        assert {name for name, tensor in state.items() if not tensor.any()} == made
        assert CountingFile.read == sum(t.numel() for n, t in state.items() if n not in made)


def naively_laid_out(config: ModelConfig, state: dict[str, Tensor], branches: int):
    """Each branch's heads and columns one after the other, then dealt out to other branches."""
    layouts = {
        "attention.qkv": (
            config.heads_per_sublayer * config.head_dim,
            *(config.kv_heads_per_sublayer * config.head_dim,) * 2,
        ),
        "feed_forward.up": (config.ffn_dim,) * (2 if config.activation == "swiglu" else 1),
    }
    for name, tensor in state.items():
        layout = next((sizes for part, sizes in layouts.items() if part in name), None)
        if layout is not None:
            groups = [group.flatten(0, 1) for group in tensor.split(layout, dim=1)]
            yield name, torch.cat([g.unflatten(0, (branches, -1)) for g in groups], dim=1)
        elif name.endswith(("attention.output.weight", "feed_forward.down.weight")):
            columns = torch.cat(tensor.unbind(), dim=1)
            yield name, torch.stack(columns.tensor_split(branches, dim=1))
        else:
            yield name, tensor


@pytest.mark.parametrize("wiring", ["shared", "standard", "lagged-layer"])
@pytest.mark.parametrize("branches", [1, 2, 3, 6, 12])
def test_a_file_is_read_as_any_number_of_branches(wiring, branches, tmp_path):
    config = SHARED.replace(wiring=wiring, ffn_dim=24)
    save(config, tmp_path)
    wanted_config = laid_out(config, branches)
    stored = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    wanted = dict(naively_laid_out(config, stored, branches))
    flat = wanted_config if wanted_config.traits.depends_on_degree else laid_out(config, 1)
    if not wanted_config.traits.depends_on_degree:
        wanted = dict(naively_laid_out(config, stored, 1))
    state = read_shard(tmp_path, split(wanted_config, 1)[0], torch.float32)
    assert {name: t.shape for name, t in state.items()} == {
        name: t.shape for name, t in Decoder(flat).state_dict().items()
    }
    for name, tensor in state.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("devices", [2, 3])
def test_ranks_of_another_number_of_branches_read_their_own_heads(devices, tmp_path):
    save(SHARED, tmp_path)
    config = laid_out(SHARED, 3)
    whole = read_shard(tmp_path, split(config, 1)[0], torch.float32)
    parts = [read_shard(tmp_path, shard, torch.float32) for shard in split(config, devices)]
    for name, tensor in whole.items():
        if tensor.dim() > 1 and tensor.shape[0] == 3:
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


def test_over_one_stream_a_rank_holds_what_it_holds_of_the_standard_model():
    standard = model_config("gpt2")
    for wiring, n in (("shared", 2), ("shared", 4), ("shared", 12), ("lagged", 4)):
        config = rewired(standard, wiring, n)
        for devices in (2, 4):
            if n % devices == 0:
                of_both = zip(split(config, devices), split(standard, devices), strict=True)
                for mine, theirs in of_both:
                    held = count_parameters(mine.local_config)
                    assert held == count_parameters(theirs.local_config)


@pytest.mark.parametrize("devices", [2, 3, 6])
def test_one_branch_is_divided_as_the_wiring_that_it_equals(devices):
    one = laid_out(SHARED, 1)
    standard = one.replace(wiring="standard")
    assert split(one, devices) == split(standard, devices)
    assert split(one, 2, placement=(2, 10)) == split(standard, 2, placement=(2, 10))
    assert [shard.count for shard in split(one, devices, tensor_parallel=devices)] == [1] * devices
    assert split(one, 1)[0].config == one


@pytest.mark.parametrize("wiring", ["shared", "kraken-shared"])
def test_of_one_branch_the_first_rank_alone_brings_what_is_added_to_sums(wiring, tmp_path):
    one = laid_out(SHARED, 1).replace(wiring=wiring, message_parts=2)
    save(one, tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    first, second = (read_shard(tmp_path, shard, torch.float32) for shard in split(one, 2))
    for name in ("layers.0.attention.output.bias", "layers.1.feed_forward.down.bias"):
        assert torch.equal(first[name], whole[f"model.{name}"])
        assert not second[name].any()


def test_streams_of_branches_cannot_be_laid_out_anew():
    with pytest.raises(ConfigError, match=r"num_sublayers=3: this kraken model has 6 .* fixed"):
        laid_out(KRAKEN, 3)
    with pytest.raises(ConfigError, match=r"num_sublayers=5 does not divide 24 query heads"):
        laid_out(SHARED, 5)
    assert laid_out(KRAKEN, 6) == KRAKEN


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_vocabulary_are_read_alone(tied, tmp_path, monkeypatch):
    save(GROUPED.replace(tie_word_embeddings=tied), tmp_path)
    shard = split(GROUPED.replace(tie_word_embeddings=tied), 1)[0]
    whole = read_shard(tmp_path, shard, torch.float32)
    monkeypatch.setattr(tensor_files, "safe_open", CountingFile)
    for rows in (range(0), range(5, 9), range(9, GROUPED.vocab_size)):
        CountingFile.read = 0
        part = dict(stream_shard(tmp_path, shard, torch.float32, vocabulary=rows))
        assert part.keys() == whole.keys()
        for name in {"embed_tokens.weight", "lm_head.weight"} & part.keys():
            assert torch.equal(part[name], whole[name][rows.start : rows.stop])
        assert CountingFile.read == sum(tensor.numel() for tensor in part.values())


def test_what_is_kept_holds_neither_the_file_nor_more_than_its_own_elements(tmp_path):
    save(GROUPED.replace(tie_word_embeddings=False), tmp_path)
    for shard in itertools.chain(*splits(GROUPED, 4)):
        for dtype in (torch.float32, torch.bfloat16):
            state = read_shard(tmp_path, shard, dtype)
            for tensor in state.values():
                assert tensor.dtype == dtype
                assert tensor.is_contiguous()
                assert tensor.untyped_storage().nbytes() == tensor.nbytes
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert str(tmp_path) not in maps.read_text()


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


def test_rows_of_an_untied_head_are_shared_out(tmp_path):
    config = KRAKEN.replace(tie_word_embeddings=False)
    save(config, tmp_path)
    (alone,) = split(config, 1)
    whole = read_shard(tmp_path, alone, torch.float32)["lm_head.weight"]
    assert whole.shape == (config.vocab_size, config.hidden_size)
    for shards in splits(config, 4):
        parts = [read_shard(tmp_path, s, torch.float32)["lm_head.weight"] for s in shards]
        assert torch.equal(torch.cat(parts), whole)


def test_a_rank_without_a_row_of_the_untied_head_reads_none(tmp_path):
    config = KRAKEN.replace(tie_word_embeddings=False, vocab_size=2)
    save(config, tmp_path)
    rows = [
        read_shard(tmp_path, shard, torch.float32)["lm_head.weight"].shape
        for shard in split(config, 3)
    ]
    assert rows == [(0, 16), (1, 16), (1, 16)]


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
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_a_later_version": {"a": 1}}))
    assert read_config(tmp_path) == KRAKEN
    assert AutoConfig.from_pretrained(tmp_path).to_model_config() == KRAKEN


def test_every_split_of_many_shapes_is_a_legal_model():
    for sublayers, heads, groups, devices in itertools.product((1, 2), (4, 6), (1, 2), (1, 2)):
        config = STANDARD.replace(
            num_sublayers=sublayers, heads_per_sublayer=heads, kv_heads_per_sublayer=groups
        )
        if devices <= units_of(config):
            local = [shard.local_config for shard in split(config, devices)]
            assert sum(c.num_attention_heads for c in local) == config.num_attention_heads
            assert sum(c.num_key_value_heads for c in local) == config.num_key_value_heads


VARIANTS = {
    "grouped, swiglu, uneven": GROUPED,
    "multi-head, gelu, uneven": GROUPED.replace(
        heads_per_sublayer=3, activation="gelu", position="learned"
    ),
    "without bias": GROUPED.replace(bias=False, norm="rmsnorm"),
    "untied": GROUPED.replace(tie_word_embeddings=False),
}
DIVISIONS = [((5,), 2), ((3, 2), 2), ((1, 4), 3), ((2, 2, 1), 3), ((4, 1), 1)]


def part_of(directory, shard) -> tuple[Decoder, torch.Tensor]:
    state = read_shard(directory, shard, torch.float64)
    rows = slice(shard.head_rows.start, shard.head_rows.stop)
    head = state.pop("lm_head.weight", state["embed_tokens.weight"][rows])
    decoder = Decoder(shard.local_config).to(torch.float64)
    decoder.load_state_dict(state)
    return decoder.eval(), head


def context_of(config: ModelConfig, tokens: int) -> AttentionContext:
    turns = None
    if config.position == "rope":
        turns = rotary(torch.arange(tokens)[None], config)
    return AttentionContext(SdpaCore(), turns)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("placement", "tensor_parallel"), DIVISIONS)
@torch.inference_mode()
def test_parts_of_a_sublayer_add_up_to_what_the_whole_computes(
    config, placement, tensor_parallel, tmp_path
):
    save(config, tmp_path)
    whole, _ = part_of(tmp_path, split(config, 1)[0])
    devices = len(placement) * tensor_parallel
    shards = split(config, devices, placement=placement, tensor_parallel=tensor_parallel)
    decoders = [part_of(tmp_path, shard)[0] for shard in shards]
    context = context_of(config, tokens=7)
    x = torch.randn(config.num_sublayers, 2, 7, config.hidden_size, dtype=torch.float64)
    for index, layer in enumerate(whole.layers):
        for name, arguments in (("attend", (context,)), ("feed", ())):
            wanted = getattr(layer, name)(x, *arguments)
            for group in {shard.inner_ranks for shard in shards}:
                held = slice(shards[group[0]].first, shards[group[0]].end)
                parts = [
                    getattr(decoders[rank].layers[index], name)(x[held], *arguments)
                    for rank in group
                ]
                torch.testing.assert_close(sum(parts), wanted[held], atol=1e-10, rtol=0)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("placement", "tensor_parallel"), DIVISIONS)
@torch.inference_mode()
def test_ranks_together_give_the_logits_of_the_whole(config, placement, tensor_parallel, tmp_path):
    save(config, tmp_path)
    model = KrakenForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = torch.randint(config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))
    devices = len(placement) * tensor_parallel
    shards = split(config, devices, placement=placement, tensor_parallel=tensor_parallel)
    decoders, heads = zip(*(part_of(tmp_path, shard) for shard in shards), strict=True)
    context = context_of(config, tokens=7)

    def inner_sums(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        return [sum(parts[rank] for rank in shard.inner_ranks) for shard in shards]

    def outer_sums(streams: list[torch.Tensor]) -> list[torch.Tensor]:
        totals = [stream.sum(dim=0, keepdim=True) for stream in streams]
        return [sum(totals[rank] for rank in shard.outer_ranks) for shard in shards]

    x = decoders[0].embed_tokens(ids)
    if config.position == "learned":
        x = x + decoders[0].embed_positions(torch.arange(7))
    y = [x[None]] * devices
    for index in range(config.num_hidden_layers):
        layers = [decoder.layers[index] for decoder in decoders]
        streams = outer_sums(y)
        a = inner_sums([layer.attend(own, context) for layer, own in zip(layers, y, strict=True)])
        z = [own + (s if index else x[None]) for own, s in zip(a, streams, strict=True)]
        f = inner_sums([layer.feed(own) for layer, own in zip(layers, z, strict=True)])
        y = [sum(terms) for terms in zip(y, a, f, strict=True)]
    joined = outer_sums([d.conjunction(own) for d, own in zip(decoders, y, strict=True)])
    logits = [
        decoder.norm(u)[0] @ head.T
        for decoder, u, head in zip(decoders, joined, heads, strict=True)
    ]
    torch.testing.assert_close(torch.cat(logits, dim=-1), model(ids).logits, atol=1e-9, rtol=0)
