"""ModelConfig refuses what cannot work; sizes, costs and derivation add up."""

import dataclasses
import difflib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from krakenlm.config import (
    SIZES,
    WIRINGS,
    ModelConfig,
    allreduce_bytes_per_token,
    allreduces,
    are_hidden,
    count_parameters,
    derive,
    format_layers,
    hidden_allreduces,
    kv_cache_bytes_per_token,
    laid_out,
    layer_runs,
    model_config,
    relative_difference,
    rewired,
    size_names,
    with_sublayers,
    without_degree,
)
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig

FIELDS = [field.name for field in dataclasses.fields(ModelConfig)]
TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "heads_per_sublayer": 6,
    "vocab_size": 17,
    "max_position_embeddings": 9,
}

# What is set, and what the message must say: the field, the value, what would fit.
REFUSED = [
    ({"wiring": "gpt"}, ["wiring='gpt'", "'kraken'", "'standard'", "'parallel'", "'ladder'"]),
    ({"position": "alibi"}, ["position='alibi'", "'learned'", "'rope'"]),
    ({"norm": None}, ["norm=None", "'layernorm'", "'rmsnorm'"]),
    ({"activation": ["gelu"]}, ["activation=['gelu']", "'gelu'", "'swiglu'"]),
    ({"output_init": "none"}, ["output_init='none'", "'all-streams'", "'own-stream'"]),
    ({"conjunction_init": 1}, ["conjunction_init=1", "'normal'", "'mean'"]),
    ({"num_sublayers": 2.0}, ["num_sublayers=2.0", "int"]),
    ({"num_sublayers": True}, ["num_sublayers=True", "int"]),
    ({"hidden_size": "678"}, ["hidden_size='678'", "int"]),
    ({"bias": 1}, ["bias=1", "bool"]),
    ({"tie_word_embeddings": None}, ["tie_word_embeddings=None", "bool"]),
    ({"dropout": "0.1"}, ["dropout='0.1'", "float"]),
    ({"num_sublayers": 0}, ["num_sublayers=0", "1 or more"]),
    ({"hidden_size": -8}, ["hidden_size=-8", "1 or more"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers=0", "1 or more"]),
    ({"heads_per_sublayer": 0}, ["heads_per_sublayer=0", "1 or more"]),
    ({"vocab_size": 0}, ["vocab_size=0", "1 or more"]),
    ({"max_position_embeddings": -1}, ["max_position_embeddings=-1", "1 or more"]),
    ({"kv_heads_per_sublayer": -1}, ["kv_heads_per_sublayer=-1", "0 for the default"]),
    ({"head_dim": -64}, ["head_dim=-64", "0 for the default"]),
    ({"ffn_dim": -1}, ["ffn_dim=-1", "0 for the default"]),
    ({"dropout": 1.0}, ["dropout=1.0", "less than 1"]),
    ({"dropout": -0.1}, ["dropout=-0.1", "0 or more"]),
    ({"dropout": float("nan")}, ["dropout=nan", "0 or more"]),
    ({"norm_eps": 0.0}, ["norm_eps=0.0", "positive"]),
    ({"rope_theta": float("inf")}, ["rope_theta=inf", "positive"]),
    ({"sum_scale": 0.0}, ["sum_scale=0.0", "positive"]),
    ({"initializer_range": -0.02}, ["initializer_range=-0.02", "positive"]),
    (
        {"hidden_size": 680},
        ["hidden_size=680", "heads_per_sublayer=6", "678 or 684", "set head_dim"],
    ),
    (
        {"kv_heads_per_sublayer": 4},
        ["kv_heads_per_sublayer=4", "heads_per_sublayer=6", "one of 1, 2, 3, 6"],
    ),
    ({"kv_heads_per_sublayer": 12}, ["kv_heads_per_sublayer=12", "one of 1, 2, 3, 6"]),
    ({"position": "rope"}, ["head_dim=113", "odd", "head_dim=114", "position='learned'"]),
    ({"position": "rope", "rotary_dim": 3}, ["rotary_dim=3", "odd", "rotary_dim=4"]),
    ({"rotary_dim": 114}, ["rotary_dim=114", "head_dim=113", "0 for all"]),
    ({"rope_factor": 8.0}, ["rope_factor=8.0", "rope_stretch='none'", "'llama3'"]),
    ({"rope_stretch": "yarn"}, ["rope_stretch='yarn'", "'linear'", "'llama3'"]),
    ({"rope_stretch": "llama3"}, ["llama3", "needs rope_original_context"]),
    (
        {"rope_stretch": "llama3", "rope_original_context": 64, "rope_low_freq_factor": 4.0},
        ["rope_low_freq_factor=4.0", "less than rope_high_freq_factor=4.0"],
    ),
    ({"parallel_norms": 3}, ["parallel_norms=3", "1", "2"]),
    ({"late_layers": "1-2"}, ["late_layers='1-2'", "kraken", "one kind", "ladder, shared, lagged"]),
]


# Fields


@pytest.mark.parametrize(("values", "essentials"), REFUSED, ids=lambda v: str(v)[:40])
def test_impossible_values_are_refused(values, essentials) -> None:
    for make in (lambda: ModelConfig(**values), lambda: KrakenConfig(**values)):
        with pytest.raises(ConfigError) as refusal:
            make()
        for essential in essentials:
            assert essential in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_config_error_is_a_krakenerror_and_a_valueerror() -> None:
    assert issubclass(ConfigError, KrakenError)
    assert issubclass(ConfigError, ValueError)


def test_unknown_keys_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'hiden_size'.*did you mean 'hidden_size'"):
        ModelConfig.from_dict({"hiden_size": 678})
    with pytest.raises(ConfigError, match=r"'zzz'.*known are .*num_sublayers"):
        ModelConfig.from_dict({"zzz": 1})
    with pytest.raises(ConfigError, match=r"'num_sublayer'"):
        ModelConfig().replace(num_sublayer=2)


from_a_file = pytest.mark.parametrize(
    "make",
    [
        ModelConfig.from_config_json,
        lambda values: KrakenConfig(**values).to_model_config(),
    ],
    ids=["ours", "Transformers'"],
)


@from_a_file
@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("hiden_size", "hidden_size"),
        ("num_sublayer", "num_sublayers"),
        ("num_sub_layers", "num_sublayers"),
        ("num_layers", "num_sublayers"),
        ("rms_norm_eps", "norm_eps"),
        ("nrom", "norm"),
        ("bais", "bias"),
        ("drop_out", "dropout"),
        ("Wiring", "wiring"),
        ("max_position_embedding", "max_position_embeddings"),
    ],
)
def test_in_a_file_what_is_almost_a_field_is_refused(make, key, field) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key '{key}': did you mean '{field}'\?"):
        make({"hidden_size": 12, "heads_per_sublayer": 3, key: 1})


@from_a_file
def test_in_a_file_keys_that_transformers_has_or_will_have_are_passed_over(make) -> None:
    future = {"cache_layout": "paged", "expert_count": 8, "rope_parameters": None, "zzz": [1]}
    values = {**PreTrainedConfig().to_dict(), **future, "hidden_size": 12, "heads_per_sublayer": 3}
    assert make(values) == ModelConfig(hidden_size=12, heads_per_sublayer=3)


def test_no_key_of_transformers_own_is_almost_a_field() -> None:
    """With room to spare: the next one is probably not either."""
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    keys = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    keys |= PreTrainedConfig().to_dict().keys()
    assert len(keys) > 10
    near = {key: difflib.get_close_matches(key, fields, 1, 0.7) for key in keys - {*fields}}
    assert {key: found for key, found in near.items() if found} == {}


@from_a_file
def test_in_a_file_numbers_of_heads_have_to_be_those_of_the_fields(make) -> None:
    values = {"hidden_size": 12, "heads_per_sublayer": 3, "kv_heads_per_sublayer": 1}
    assert make({**values, "num_attention_heads": 6, "num_key_value_heads": 2}) == make(values)
    with pytest.raises(ConfigError, match="num_attention_heads=12: the other fields make it 6"):
        make({**values, "num_attention_heads": 12})
    with pytest.raises(ConfigError, match="num_key_value_heads=1: the other fields make it 2"):
        make({**values, "num_key_value_heads": 1})


def test_defaults_are_the_published_125m_2way_kraken() -> None:
    assert ModelConfig() == model_config("kraken-125M-2way")


def test_derived_defaults() -> None:
    kraken = ModelConfig()
    assert (kraken.head_dim, kraken.kv_heads_per_sublayer, kraken.ffn_dim) == (113, 6, 1356)
    for wiring in ("standard", "parallel", "ladder"):
        config = ModelConfig(wiring=wiring, num_sublayers=1, hidden_size=768, heads_per_sublayer=12)
        assert (config.head_dim, config.kv_heads_per_sublayer, config.ffn_dim) == (64, 12, 3072)
    free = ModelConfig(hidden_size=100, heads_per_sublayer=3, head_dim=8, ffn_dim=7)
    assert (free.head_dim, free.ffn_dim, free.attention_width) == (8, 7, 48)
    assert type(ModelConfig(rope_theta=500).rope_theta) is float


def test_properties_span_all_sublayers() -> None:
    config = ModelConfig(num_sublayers=3, heads_per_sublayer=4, kv_heads_per_sublayer=2, head_dim=8)
    assert config.num_attention_heads == 12
    assert config.num_key_value_heads == 6
    assert config.attention_width == 96
    assert config.norm_sets == config.replace(wiring="kraken-shared").norm_sets == 3
    assert config.replace(wiring="ladder").norm_sets == 1


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().hidden_size = 8  # type: ignore[misc]


def test_dictionaries_round_trip() -> None:
    config = ModelConfig(num_sublayers=3, position="rope", head_dim=64, bias=True)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.replace() == config
    assert config.replace(bias=False) != config


# The Hugging Face configuration


def test_kraken_config_has_the_fields_of_model_config() -> None:
    config = ModelConfig(num_sublayers=3, position="rope", head_dim=64, dropout=0.25)
    hf_config = KrakenConfig.from_model_config(config)
    for name in FIELDS:
        assert getattr(hf_config, name) == getattr(config, name), name
    assert hf_config.to_model_config() == config
    assert hf_config.num_attention_heads == config.num_attention_heads
    assert hf_config.num_key_value_heads == config.num_key_value_heads
    for name in FIELDS:
        assert getattr(KrakenConfig(), name) == getattr(ModelConfig(), name), name


def test_kraken_config_round_trips_through_config_json(tmp_path: Path) -> None:
    config = KrakenConfig(
        num_sublayers=3, position="rope", head_dim=64, kv_heads_per_sublayer=2, eos_token_id=5
    )
    config.save_pretrained(tmp_path)
    loaded = KrakenConfig.from_pretrained(tmp_path)
    assert loaded.to_model_config() == config.to_model_config()
    assert loaded.eos_token_id == 5
    assert loaded.to_dict() == config.to_dict()


def test_to_hf_dict_is_what_from_pretrained_reads(tmp_path: Path) -> None:
    from krakenlm.files import write_json

    config = ModelConfig(num_sublayers=3, norm="rmsnorm")
    write_json(tmp_path / "config.json", config.to_hf_dict())
    loaded = KrakenConfig.from_pretrained(tmp_path)
    assert loaded.to_model_config() == config
    assert loaded.architectures == ["KrakenForCausalLM"]


# Costs


@pytest.mark.parametrize("wiring", WIRINGS)
def test_count_parameters_equals_the_model(wiring) -> None:
    options = {
        "num_sublayers": (1, 3),
        "position": ("learned", "rope"),
        "norm": ("layernorm", "rmsnorm"),
        "activation": ("gelu", "swiglu"),
        "kv_heads_per_sublayer": (0, 2),
        "head_dim": (0, 10),
        "bias": (False, True),
        "tie_word_embeddings": (False, True),
    }
    for values in itertools.product(*options.values()):
        chosen = {**TINY, "wiring": wiring, **dict(zip(options, values, strict=True))}
        config = ModelConfig.from_dict({**chosen, "ffn_dim": 31 if chosen["head_dim"] else 0})
        model = _on_no_device(config)
        assert count_parameters(config) == sum(p.numel() for p in model.parameters()), config


def _on_no_device(config: ModelConfig) -> KrakenForCausalLM:
    import torch

    with torch.device("meta"):
        return KrakenForCausalLM(KrakenConfig.from_model_config(config))


def test_cache_and_messages_of_gpt2() -> None:
    gpt2 = model_config("gpt2")
    assert kv_cache_bytes_per_token(gpt2) == 2 * 12 * 768 * 2
    assert kv_cache_bytes_per_token(gpt2, 4) == 2 * kv_cache_bytes_per_token(gpt2)
    # Two sums a layer in standard and Ladder, one in parallel and Kraken.
    for wiring, sums in (("standard", 24), ("ladder", 24), ("parallel", 12)):
        config = model_config("gpt2", wiring=wiring)
        assert allreduce_bytes_per_token(config) == sums * 768 * 2
    assert allreduce_bytes_per_token(model_config("kraken-125M-2way")) == 12 * 678 * 2
    # All but the last carry a part of the channels.
    shared = derive(model_config("gpt2"), 4, rule="shared", message_parts=3)
    assert allreduce_bytes_per_token(shared) == (11 * 256 + 768) * 2


def test_hidden_and_exposed_sums() -> None:
    sums = {name: (traits.allreduces(12), traits.hidden(12)) for name, traits in WIRINGS.items()}
    assert sums == {
        "kraken": (12, 11),
        "standard": (24, 0),
        "parallel": (12, 0),
        "ladder": (24, 23),
        "shared": (12, 11),
        "kraken-shared": (12, 11),
        "lagged": (12, 11),
        "lagged-layer": (12, 11),
    }


# Sizes


def test_names_and_sizes_mean_the_same() -> None:
    for size in SIZES:
        for name in size.names:
            assert model_config(name) == model_config(name.upper()) == model_config(name.lower())
            assert model_config(name) == model_config(size.names[0])
    assert model_config("gpt2") == model_config("124M") == model_config("124m")
    assert model_config("gpt2-medium") == model_config("355M")
    assert model_config("gpt2-large") == model_config("774M")
    assert model_config("gpt2-xl") == model_config("1.5B")


def test_sizes_are_what_their_names_say() -> None:
    factors = {"M": 1e6, "B": 1e9}
    for name in size_names():
        size = re.search(r"(?:^|-)([\d.]+)([MB])(?:-\dway)?$", name)
        if size is not None:
            count = count_parameters(model_config(name))
            assert count == pytest.approx(float(size[1]) * factors[size[2]], rel=0.04), name


def test_the_paper_s_grid_has_heads_of_128() -> None:
    for name in ("1.3B", "6.7B", "13B", "65B", "175B"):
        assert model_config(name).head_dim == 128
        assert model_config(name).max_position_embeddings == 2048


def test_sizes_take_a_wiring_and_changes() -> None:
    config = model_config("gpt2", wiring="ladder", vocab_size=1000, position="rope")
    assert (config.wiring, config.vocab_size, config.position) == ("ladder", 1000, "rope")
    assert model_config("kraken-760M-4way", bias=True).bias


def test_size_errors() -> None:
    with pytest.raises(ConfigError, match=r"'gpt5'.*gpt2.*175B.*kraken-125M-2way"):
        model_config("gpt5")
    with pytest.raises(ConfigError, match=r"wiring='kraken'.*derive gpt2 --sublayers"):
        model_config("gpt2", wiring="kraken")
    with pytest.raises(ConfigError, match="wiring='x'"):
        model_config("gpt2", wiring="x")
    with pytest.raises(ConfigError, match="'layers'"):
        model_config("gpt2", layers=3)


# Derivation


@pytest.mark.parametrize("num_sublayers", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("changes", [{}, {"bias": True, "position": "rope", "norm": "rmsnorm"}])
def test_published_rule_matches_the_baseline(num_sublayers, changes) -> None:
    base = model_config("gpt2", **changes)
    kraken = derive(base, num_sublayers)
    assert kraken.wiring == "kraken"
    assert kraken.num_sublayers * kraken.heads_per_sublayer == 12
    assert kraken.ffn_dim == 2 * kraken.hidden_size
    assert abs(relative_difference(kraken, base)) < 0.02  # rope's steps of 24 are coarse
    carried = ("num_hidden_layers", "vocab_size", "max_position_embeddings", "bias", "position")
    for name in (*carried, "norm", "activation"):
        assert getattr(kraken, name) == getattr(base, name), name

    # No other multiple of the heads is nearer.
    step = kraken.heads_per_sublayer * (2 if base.position == "rope" else 1)
    assert kraken.hidden_size % step == 0
    for width in (kraken.hidden_size - step, kraken.hidden_size + step):
        other = kraken.replace(hidden_size=width, head_dim=0, ffn_dim=2 * width)
        assert abs(relative_difference(kraken, base)) <= abs(relative_difference(other, base))


@pytest.mark.parametrize("name", ["gpt2", "355M", "1.3B", "6.7B"])
@pytest.mark.parametrize("num_sublayers", [2, 4])
def test_head_dim_gives_hardware_friendly_shapes(name, num_sublayers) -> None:
    base = model_config(name)
    for head_dim in (64, 128):
        kraken = derive(base, num_sublayers, head_dim=head_dim)
        assert kraken.head_dim == head_dim
        assert kraken.hidden_size % 64 == 0
        assert kraken.ffn_dim % 64 == 0
        assert abs(relative_difference(kraken, base)) <= 0.01


def test_head_dim_and_kv_heads_together() -> None:
    base = model_config("gpt2")
    kraken = derive(base, 4, head_dim=64, kv_heads=2)
    assert (kraken.head_dim, kraken.kv_heads_per_sublayer) == (64, 2)
    assert abs(relative_difference(kraken, base)) <= 0.01


def test_kv_heads_bring_the_cache_back() -> None:
    base = model_config("gpt2")
    wide = derive(base, 4)
    grouped = derive(base, 4, kv_heads=1)
    assert grouped.kv_heads_per_sublayer == 1
    assert kv_cache_bytes_per_token(wide) > 2 * kv_cache_bytes_per_token(base)
    assert kv_cache_bytes_per_token(grouped) < kv_cache_bytes_per_token(base)
    assert abs(relative_difference(grouped, base)) < 0.01


@pytest.mark.parametrize("kv_heads", [0, 4, 1])
@pytest.mark.parametrize("num_sublayers", [1, 2, 4])
def test_keep_width_keeps_attention_and_cache(num_sublayers, kv_heads) -> None:
    base = model_config("gpt2", kv_heads_per_sublayer=kv_heads)
    kraken = derive(base, num_sublayers, rule="keep-width")
    assert kraken.hidden_size == base.hidden_size
    assert kraken.attention_width == base.attention_width
    assert kraken.num_sublayers * kraken.ffn_dim == base.ffn_dim
    # A sub-layer cannot have less than one key and value head.
    cache = max(kv_cache_bytes_per_token(base), 2 * 12 * num_sublayers * 64 * 2)
    assert kv_cache_bytes_per_token(kraken) == cache


GROUPED = ModelConfig(
    wiring="shared", num_sublayers=2, hidden_size=24, num_hidden_layers=2, heads_per_sublayer=12,
    kv_heads_per_sublayer=6, head_dim=2, ffn_dim=30, vocab_size=17, max_position_embeddings=9,
)  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 12])
def test_where_n_is_a_choice_the_whole_layer_stays_what_it_is(n) -> None:
    config = with_sublayers(GROUPED, n)
    assert config.num_sublayers == n
    assert config.num_attention_heads == 24 and config.num_key_value_heads == 12
    assert n * config.ffn_dim == 60
    assert count_parameters(config) == count_parameters(GROUPED)
    assert with_sublayers(config, 2) == GROUPED


def test_without_a_choice_a_model_has_its_own_n() -> None:
    assert with_sublayers(GROUPED, None) is GROUPED
    kraken = ModelConfig(**TINY)
    assert with_sublayers(kraken, None) is kraken


@pytest.mark.parametrize("wiring", WIRINGS)
def test_n_is_a_choice_where_it_changes_the_function_and_not_the_weights(wiring) -> None:
    config = ModelConfig(wiring=wiring, num_sublayers=2, **TINY)
    if WIRINGS[wiring].degree_is_a_choice:
        assert with_sublayers(config, 3).num_sublayers == 3
        return
    said = "norms of their own" if WIRINGS[wiring].own_norms else "the same function for any number"
    for n in (2, 3):  # its own as well: there is nothing to choose
        with pytest.raises(ConfigError, match=rf"^--sublayers {n}: .*{said}.*: leave it out$"):
            with_sublayers(config, n)


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "needs 1 or more"),
        (-1, "needs 1 or more"),
        (5, r"does not divide 24 query heads: use one of 1, 2, 3, 4, 6, 12$"),
        (8, r"does not divide 12 key and value heads: use one of 1, 2, 3, 4, 6, 12$"),
    ],
)
def test_what_n_would_fit_is_said_of_heads_and_columns_together(n, said) -> None:
    with pytest.raises(ConfigError, match=f"^--sublayers {n}:? {said}"):
        with_sublayers(GROUPED, n)
    odd = GROUPED.replace(ffn_dim=25)
    with pytest.raises(ConfigError, match=r"50 feed-forward columns: use one of 1, 2$"):
        with_sublayers(odd, 3)


def test_one_branch_is_shared_out_as_the_wiring_that_it_equals() -> None:
    one = with_sublayers(GROUPED, 1)
    assert without_degree(one) == one.replace(wiring="standard")
    assert without_degree(GROUPED) is GROUPED
    kraken = ModelConfig(**{**TINY, "num_sublayers": 1})
    assert without_degree(kraken) is kraken  # its conjunction makes it another function
    for wiring in ("shared", "kraken-shared"):
        parted = kraken.replace(wiring=wiring, message_parts=2)
        assert without_degree(parted) == kraken.replace(wiring="standard")


# Messages of a part of the channels


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_message_may_carry_a_part_of_the_channels_where_the_wiring_says_so(wiring) -> None:
    values = {**TINY, "wiring": wiring}
    assert ModelConfig(**values).message_parts == 1
    if WIRINGS[wiring].parted_messages:
        assert ModelConfig(**values, message_parts=2).message_parts == 2
        return
    said = rf"^message_parts=2: .* a {wiring} model .*use wiring shared or kraken-shared$"
    with pytest.raises(ConfigError, match=said):
        ModelConfig(**values, message_parts=2)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (0, r"^message_parts=0: needs 1 or more$"),
        (5, r"^hidden_size=24 is not a multiple of message_parts=5: use 20 or 25, or another"),
        (48, r"^hidden_size=24 is not a multiple of message_parts=48: use 48, or another"),
    ],
)
def test_parts_divide_the_channels(parts, said) -> None:
    with pytest.raises(ConfigError, match=said):
        GROUPED.replace(message_parts=parts)


def test_another_number_of_sublayers_keeps_the_parts_and_another_wiring_those_it_has() -> None:
    parted = GROUPED.replace(message_parts=3)
    assert with_sublayers(parted, 4).message_parts == 3
    assert rewired(parted, "shared", 4).message_parts == 3
    assert rewired(parted, "shared", 4, message_parts=2) == laid_out(parted, 4).replace(
        message_parts=2
    )
    assert rewired(parted, "lagged", 1).message_parts == 1
    with pytest.raises(ConfigError, match=r"message_parts=3: .*lagged"):
        rewired(parted, "lagged", 1, message_parts=3)


# Layers of two kinds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("0-11", ""),
        ("4-11", "4-11"),
        ("11, 4-10", "4-11"),
        ("0,2,4", "0,2,4"),
        ("5,3-4,9", "3-5,9"),
    ],
)
def test_late_layers_have_one_spelling(text, said) -> None:
    config = ModelConfig(wiring="shared", late_layers=text)
    assert config.late_layers == said
    assert format_layers(config.late_layer_indices) == (said or "0-11")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("12", "layers 0 to 11: leave out 12"),
        ("4-12", "leave out what is above in 4-12"),
        ("7-4", "runs backwards: use 4-7"),
        ("3,2-4", "each layer once"),
        ("-3", "such as 4-11 or 0,2,8-11"),
        ("late", "such as"),
        ("1,,2", "such as"),
        ("9" * 5000, "such as"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(text, said) -> None:
    with pytest.raises(ConfigError, match="late_layers=") as refusal:
        ModelConfig(wiring="lagged", late_layers=text)
    assert said in str(refusal.value)


def test_layers_that_wait_have_the_sums_of_the_wiring_that_waits() -> None:
    gpt2 = model_config("gpt2")
    shared = gpt2.replace(wiring="shared", late_layers="2-5,9", message_parts=2)
    assert [(run.wiring, run.layers.start, run.layers.stop) for run in layer_runs(shared)] == [
        ("standard", 0, 2),
        ("shared", 2, 6),
        ("standard", 6, 9),
        ("shared", 9, 10),
        ("standard", 10, 12),
    ]
    hidden = "....***." + "......" + "." + "...."
    assert "".join(".*"[is_hidden] for is_hidden in are_hidden(shared)) == hidden
    assert (allreduces(shared), hidden_allreduces(shared)) == (19, 3)
    assert allreduce_bytes_per_token(shared) == (16 * 768 + 3 * 384) * 2
    ladder = gpt2.replace(wiring="ladder", late_layers="6-11")
    assert (allreduces(ladder), hidden_allreduces(ladder)) == (24, 11)
    layer = gpt2.replace(wiring="lagged-layer", late_layers="6-11")
    assert (allreduces(layer), hidden_allreduces(layer)) == (12, 5)
    assert layer_runs(layer)[0].wiring == "parallel"


def test_layouts_and_wirings_keep_the_late_layers_where_there_are_any() -> None:
    mixed = GROUPED.replace(wiring="shared", late_layers="1")
    assert with_sublayers(mixed, 4).late_layers == "1"
    assert without_degree(laid_out(mixed, 1)).late_layers == ""
    assert rewired(mixed, "lagged", 1).late_layers == "1"
    assert rewired(mixed, "standard", 1).late_layers == ""
    assert rewired(mixed, "shared", 2, late_layers="0").late_layers == "0"
    assert rewired(mixed, "shared", 2, late_layers="all").late_layers == ""
    with pytest.raises(ConfigError, match=r"late_layers='1': .*standard"):
        rewired(mixed, "standard", 1, late_layers="1")
    standard = laid_out(GROUPED.replace(wiring="standard"), 1)
    assert derive(standard, 2, rule="shared", late_layers="1").late_layers == "1"
    with pytest.raises(ConfigError, match="rule='published' has layers of one kind"):
        derive(standard, 2, late_layers="1")


def test_two_norms_of_a_parallel_layer_fit_every_wiring_with_two() -> None:
    neox = GROUPED.replace(wiring="parallel", parallel_norms=2)
    assert rewired(neox, "lagged-layer", 1).norms_per_layer == 2
    assert rewired(neox, "shared", 2).norms_per_layer == 2
    with pytest.raises(
        ConfigError, match=r"has 1 norms a layer.*use one of parallel, lagged-layer"
    ):
        rewired(neox.replace(parallel_norms=1), "shared", 2)
    assert count_parameters(neox) == count_parameters(neox.replace(wiring="standard"))


# Kraken's sub-layers over one stream


@pytest.mark.parametrize("keywords", [{}, {"rule": "keep-width"}, {"head_dim": 64}], ids=str)
@pytest.mark.parametrize("num_sublayers", [2, 4])
def test_kraken_shared_is_matched_without_a_conjunction(num_sublayers, keywords) -> None:
    base = model_config("gpt2")
    found = derive(base, num_sublayers, wiring="kraken-shared", **keywords)
    kraken = derive(base, num_sublayers, **keywords)
    assert found.wiring == "kraken-shared"
    same_shape = found.replace(wiring="kraken")
    d = found.hidden_size
    assert count_parameters(same_shape) - count_parameters(found) == num_sublayers * d * d
    if keywords.get("rule") == "keep-width":
        assert same_shape == kraken
    elif not keywords:
        assert d > kraken.hidden_size
        step = found.heads_per_sublayer
        off = [
            abs(relative_difference(found.replace(hidden_size=w, head_dim=0, ffn_dim=2 * w), base))
            for w in (d - step, d, d + step)
        ]
        assert min(off) == off[1]
    else:
        assert abs(relative_difference(found, base)) <= 0.01


def test_a_published_width_is_one_that_its_parts_divide() -> None:
    base = model_config("gpt2")
    assert derive(base, 4, wiring="kraken-shared").hidden_size == 507
    for parts in (2, 4, 5, 7):
        found = derive(base, 4, wiring="kraken-shared", message_parts=parts)
        assert found.message_parts == parts
        assert found.hidden_size % parts == found.hidden_size % 3 == 0
        assert abs(found.hidden_size - 507) <= 3 * parts / 2
    rope = derive(base.replace(position="rope"), 4, wiring="kraken-shared", message_parts=5)
    assert rope.head_dim % 2 == 0 and rope.hidden_size % 5 == 0


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"wiring": "lagged"}, r"^wiring='lagged': .*use kraken or kraken-shared$"),
        ({"wiring": "shared"}, r"^wiring='shared': .*; rule='shared' makes that$"),
        ({"wiring": "kraken-shared", "rule": "shared"}, r"rule='shared' makes shared models"),
        ({"message_parts": 2}, r"^message_parts=2: .* a kraken model"),
        ({"message_parts": 0}, r"^message_parts=0: needs 1 or more"),
    ],
)
def test_wirings_and_parts_that_a_rule_does_not_make_are_refused(keywords, said) -> None:
    with pytest.raises(ConfigError, match=said):
        derive(model_config("gpt2"), 2, **keywords)


def test_a_published_shape_without_its_conjunction() -> None:
    kraken = model_config("kraken-125M-4way")
    assert model_config("kraken-125M-4way", wiring="kraken-shared") == kraken.replace(
        wiring="kraken-shared"
    )
    with pytest.raises(ConfigError, match=r"krakenlm derive gpt2 --sublayers N --wiring kraken-s"):
        model_config("gpt2", wiring="kraken-shared")


def test_keep_width_with_another_head_dim() -> None:
    base = model_config("gpt2")
    kraken = derive(base, 2, rule="keep-width", head_dim=128)
    assert (kraken.heads_per_sublayer, kraken.head_dim) == (3, 128)
    assert kraken.attention_width == base.attention_width
    assert kv_cache_bytes_per_token(kraken) == kv_cache_bytes_per_token(base)


def test_what_cannot_be_derived_is_refused_with_what_fits() -> None:
    base = model_config("gpt2")
    fits = r"num_sublayers=5 does not divide 12 query heads.*1, 2, 3, 4, 6, 12"
    with pytest.raises(ConfigError, match=fits):
        derive(base, 5)
    with pytest.raises(ConfigError, match=fits):
        derive(base, 5, rule="keep-width")
    with pytest.raises(ConfigError, match=r"num_sublayers=0.*1 or more"):
        derive(base, 0)
    with pytest.raises(ConfigError, match=r"kv_heads_per_sublayer=4.*one of 1, 2, 3, 6"):
        derive(base, 2, kv_heads=4)
    with pytest.raises(ConfigError, match=r"head_dim=100.*768"):
        derive(base, 2, rule="keep-width", head_dim=100)
    with pytest.raises(ConfigError, match=r"rule='wide'.*'published', 'keep-width', 'shared'"):
        derive(base, 2, rule="wide")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"wiring='kraken'.*standard"):
        derive(model_config("kraken-125M-2way"), 2)


def test_configurations_need_no_torch() -> None:
    script = (
        "import sys, krakenlm.config as c\n"
        "c.derive(c.model_config('gpt2'), 4, head_dim=64)\n"
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
