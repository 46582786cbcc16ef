"""Numbers that must not change, each with its origin."""

import math

import pytest
import torch
from torch import Tensor

from krakenlm.config import (
    ModelConfig,
    allreduce_bytes_per_token,
    count_parameters,
    derive,
    model_config,
    relative_difference,
)
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig

# arXiv 2408.07802 and the configurations of github.com/rohan-bp/kraken: baseline, N, width d,
# heads per sub-layer.
PUBLISHED = {
    "kraken-125M-2way": ("124M", 2, 678, 6),
    "kraken-125M-4way": ("124M", 4, 504, 3),
    "kraken-125M-6way": ("124M", 6, 418, 2),
    "kraken-350M-2way": ("355M", 2, 888, 8),
    "kraken-350M-4way": ("355M", 4, 644, 4),
    "kraken-760M-4way": ("758M", 4, 960, 4),
}
# Where the rule "nearest total among multiples of the heads" finds a neighbour of the published
# width (design notes, section 2).
DERIVED = {"kraken-125M-6way": 420, "kraken-350M-2way": 896}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name) -> None:
    baseline, num_sublayers, width, heads = PUBLISHED[name]
    config = model_config(name)
    assert config.num_sublayers == num_sublayers
    assert config.hidden_size == width
    assert config.heads_per_sublayer == heads
    assert config.ffn_dim == 2 * width
    assert config.num_hidden_layers == model_config(baseline).num_hidden_layers
    assert config.max_position_embeddings == 1024


@pytest.mark.parametrize("name", PUBLISHED)
def test_derived_widths_are_the_published_ones(name) -> None:
    baseline, num_sublayers, width, heads = PUBLISHED[name]
    base = model_config(baseline)
    config = derive(base, num_sublayers)
    assert config.hidden_size == DERIVED.get(name, width)
    assert config.heads_per_sublayer == heads
    assert abs(config.hidden_size / width - 1) < 0.01
    assert abs(relative_difference(config, base)) < 0.01
    # Parameters without biases, design notes, section 2.
    d, v, c, layers, n = config.hidden_size, 50257, 1024, base.num_hidden_layers, num_sublayers
    assert (
        count_parameters(config) == v * d + c * d + layers * n * (8 * d**2 + 2 * d) + n * d**2 + d
    )


# Parameters of Hugging Face's gpt2, gpt2-medium, gpt2-large and gpt2-xl. (Radford et al. 2019, who
# made these models, count them otherwise: 117M, 345M, 762M, 1542M.)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2_sizes_with_biases(name, parameters) -> None:
    assert count_parameters(model_config(name, bias=True)) == parameters


# Half the messages, each sqrt(1.5 / N) as wide (design notes, section 2: 0.43, 0.31, 0.22).
@pytest.mark.parametrize(("num_sublayers", "volume"), [(2, 0.43), (4, 0.31), (8, 0.22)])
def test_allreduce_volume(num_sublayers, volume) -> None:
    assert math.sqrt(1.5 / num_sublayers) / 2 == pytest.approx(volume, abs=0.005)
    for name in ("6.7B", "175B"):  # large, so that embeddings weigh little
        base = model_config(name)
        ratio = allreduce_bytes_per_token(derive(base, num_sublayers)) / allreduce_bytes_per_token(
            base
        )
        assert ratio == pytest.approx(math.sqrt(1.5 / num_sublayers) / 2, rel=0.01)


# What tests/reference.py, which shares no code with the model, gives in float64 for TINY with the
# weights of `fill`: the logits behind the last of IDS.
LOGITS = {
    "kraken": "-0.189763428397 1.355619027540 1.557837701193 2.236959573597 -1.020783774769 "
    "0.099514120883 0.361043036083 -1.714883747011 1.065581092718 1.411362812163",
    "standard": "-1.245729799604 -1.271035681442 -0.402624716977 0.664997358467 0.054547197755 "
    "0.027116182468 -0.867023933212 -1.846228150633 0.280302359433 -0.577815031344",
    "parallel": "0.345607313634 -0.570125752743 0.167716398454 1.086404925387 0.635601276617 "
    "-1.189504715552 -1.882603787744 -0.676510099736 0.243169945147 1.649960298245",
    "ladder": "0.295658551474 -0.855358045358 -0.693398472617 -0.426944944450 0.632463918840 "
    "-0.576363189409 -1.308825655996 -0.543772891541 0.113761232136 -0.266836475314",
}
TINY = {
    "num_sublayers": 3,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "heads_per_sublayer": 2,
    "vocab_size": 10,
    "max_position_embeddings": 8,
    "bias": True,
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def fill(model: torch.nn.Module) -> None:
    """Set weights that depend on no random number generator.

    Element i of tensor k, in order of names, is sin(i^2 + k) / 2; norms have 1 more. The square
    keeps the rows of a matrix from being multiples of each other.
    """
    with torch.no_grad():
        for k, (name, parameter) in enumerate(sorted(model.named_parameters())):
            i = torch.arange(parameter.numel(), dtype=torch.float64)
            values = torch.sin(i * i + k) / 2
            if "norm" in name and name.endswith(".weight"):
                values = values + 1
            parameter.copy_(values.view_as(parameter))


def last_logits(wiring: str) -> Tensor:
    config = ModelConfig.from_dict({**TINY, "wiring": wiring})
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config)).double().eval()
    fill(model)
    with torch.no_grad():
        return model(IDS).logits[0, -1]


@pytest.mark.parametrize("wiring", LOGITS)
def test_logits_of_fixed_weights(wiring) -> None:
    found = last_logits(wiring)
    wanted = torch.tensor(list(map(float, LOGITS[wiring].split())), dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
