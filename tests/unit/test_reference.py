"""The fast model equals the plain one, forward and backward, in float64."""

import itertools

import pytest
import torch

import tiny
from krakenlm.config import WIRINGS, ModelConfig
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from reference import reference_logits

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "heads_per_sublayer": 4,
    "vocab_size": 11,
    "max_position_embeddings": 8,
}

# Each kind of value of each option meets each kind of every other one in some line.
OPTIONS = (
    "position",
    "norm",
    "activation",
    "kv_heads_per_sublayer",
    "bias",
    "tie_word_embeddings",
    "head_dim",
    "ffn_dim",
)
COVERING = [
    ("learned", "layernorm", "gelu", 4, True, True, 0, 0),
    ("rope", "rmsnorm", "swiglu", 2, False, False, 6, 5),
    ("rope", "layernorm", "gelu", 1, False, False, 0, 0),
    ("learned", "rmsnorm", "swiglu", 1, True, True, 3, 7),
    ("rope", "layernorm", "swiglu", 2, True, True, 4, 0),
    ("learned", "layernorm", "swiglu", 4, False, False, 0, 3),
    ("learned", "rmsnorm", "gelu", 2, True, False, 0, 9),
    ("rope", "rmsnorm", "gelu", 4, False, True, 6, 0),
]

PARTED = [name for name, traits in WIRINGS.items() if traits.parted_messages]

MIXED = [name for name, traits in WIRINGS.items() if traits.awaited_as is not None]
MIXED += ["shared/2"]

CROSS = {
    "position": ("learned", "rope"),
    "norm": ("layernorm", "rmsnorm"),
    "activation": ("gelu", "swiglu"),
    "kv_heads_per_sublayer": (4, 2, 1),
    "bias": (False, True),
    "tie_word_embeddings": (False, True),
}


@pytest.mark.parametrize("options", COVERING, ids=lambda o: "-".join(map(str, o)))
@pytest.mark.parametrize("num_sublayers", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_forward_and_gradients_equal_the_reference(wiring, num_sublayers, options) -> None:
    config = ModelConfig.from_dict(
        {
            **SMALL,
            **dict(zip(OPTIONS, options, strict=True)),
            "wiring": wiring,
            "num_sublayers": num_sublayers,
            "rope_theta": 100.0,
            "norm_eps": 1e-3,
        }
    )
    check(config, torch.tensor([[1, 2, 10, 0, 3], [4, 4, 7, 9, 5]]))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_combination_of_options_equals_the_reference(wiring) -> None:
    values = {**SMALL, "num_hidden_layers": 2, "num_sublayers": 2, "head_dim": 4, "ffn_dim": 5}
    for options in itertools.product(*CROSS.values()):
        chosen = dict(zip(CROSS, options, strict=True))
        config = ModelConfig.from_dict({**values, **chosen, "wiring": wiring})
        check(config, torch.tensor([[1, 5, 10]]))


@pytest.mark.parametrize("num_sublayers", [1, 2, 3])
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_what_other_families_have_equals_the_reference(wiring, family, num_sublayers) -> None:
    values = {**SMALL, "position": "rope", "rope_theta": 100.0, "kv_heads_per_sublayer": 2}
    values |= tiny.FAMILIES[family]
    config = ModelConfig.from_dict({**values, "wiring": wiring, "num_sublayers": num_sublayers})
    check(config, torch.tensor([[1, 2, 10, 0, 3], [4, 4, 7, 9, 5]]))


@pytest.mark.parametrize("num_sublayers", [1, 2, 3])
@pytest.mark.parametrize("late", ["0", "4", "2-4", "0-2", "1,3", "1-2,4"])
@pytest.mark.parametrize("function", MIXED)
def test_layers_of_two_kinds_equal_the_reference(function, late, num_sublayers) -> None:
    values = {**SMALL, "hidden_size": 12, "num_hidden_layers": 5, "bias": True, "norm_eps": 1e-3}
    wiring, _, parts = function.partition("/")
    values |= {"wiring": wiring, "message_parts": int(parts or 1), "late_layers": late}
    config = ModelConfig.from_dict({**values, "num_sublayers": num_sublayers})
    check(config, torch.tensor([[1, 5, 10]]))


@pytest.mark.parametrize("num_sublayers", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("wiring", PARTED)
def test_sums_of_a_part_of_the_channels_equal_the_reference(wiring, parts, num_sublayers) -> None:
    values = {**SMALL, "hidden_size": 12, "num_hidden_layers": 5, "bias": True, "norm_eps": 1e-3}
    config = ModelConfig.from_dict(
        {**values, "wiring": wiring, "num_sublayers": num_sublayers, "message_parts": parts}
    )
    check(config, torch.tensor([[1, 5, 10]]))


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("wiring", PARTED)
def test_one_branch_is_the_standard_model_whatever_its_sums_carry(wiring, parts) -> None:
    """Up to rounding; and for several branches the parts make another function."""
    values = {**SMALL, "hidden_size": 12, "num_hidden_layers": 5, "bias": True, "wiring": wiring}
    torch.manual_seed(0)
    ids = torch.tensor([[1, 5, 10, 2]])
    for n in (1, 2):
        config = ModelConfig.from_dict({**values, "num_sublayers": n, "message_parts": parts})
        model = KrakenForCausalLM(KrakenConfig.from_model_config(config)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
        w = dict(model.named_parameters())
        as_standard = reference_logits(
            config.replace(wiring="standard" if n == 1 else wiring, message_parts=1), w, ids
        )
        same = torch.allclose(model(ids).logits, as_standard, rtol=1e-9, atol=1e-9)
        assert same == (n == 1 or parts == 1)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_scaled_sums_equal_the_reference_and_concern_kraken_alone(wiring) -> None:
    values = {**SMALL, "wiring": wiring, "num_sublayers": 3, "bias": True, "norm_eps": 1e-3}
    check(ModelConfig.from_dict({**values, "sum_scale": 1 / 3}), torch.tensor([[1, 5, 10]]))


def check(config: ModelConfig, ids: torch.Tensor) -> None:
    """Logits, and the gradient of a random functional of them for each parameter."""
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config)).double()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, which start at 1 and 0
            parameter.normal_(std=0.5)
    direction = torch.randn(*ids.shape, config.vocab_size, dtype=torch.float64)

    logits = model(ids).logits
    expected = reference_logits(config, dict(model.named_parameters()), ids)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((logits * direction).sum(), parameters)
    wanted = torch.autograd.grad((expected * direction).sum(), parameters)
    for name, found_gradient, wanted_gradient in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(
            found_gradient,
            wanted_gradient,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda text, name=name: f"{config}\ngradient of {name}: {text}",
        )
