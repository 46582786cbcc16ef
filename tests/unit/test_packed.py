"""Linear maps with packed weights, against the plain ones they replace."""

import weakref

import pytest
import torch

import tiny
from krakenlm.config import WIRINGS, ModelConfig
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.model import packed
from krakenlm.model.attention import SdpaCore
from krakenlm.model.decoder import Decoder
from krakenlm.model.layers import BranchLinear
from krakenlm.model.packed import PackedLinear, PackedMatrix, can_pack, pack
from krakenlm.model.reduce import LocalReducer
from krakenlm.ranks.launch import Rank

needs_packing = pytest.mark.skipif(
    not can_pack(torch.empty(1, dtype=torch.bfloat16)),
    reason="PyTorch has no packed bfloat16 products on this machine",
)

ALONE = Rank(0, 1, torch.device("cpu"), lambda message: None)
FUNCTIONS = tiny.FUNCTIONS | tiny.FAMILIES | tiny.ADAPTED
BF16_STEP = 2.0**-8
"""A bfloat16 result differs from the exact one by at most this part of itself."""


def drawn_map(branches: int, bias_rows: int, inputs: int = 40, outputs: int = 24) -> BranchLinear:
    linear = BranchLinear(branches, inputs, outputs, bias_rows, init_std=0.2)
    for parameter in linear.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return linear.to(torch.bfloat16).requires_grad_(False)


def drawn_decoder(wiring: str = "kraken", **changes) -> Decoder:
    torch.manual_seed(2)
    fields = {
        "wiring": wiring, "num_sublayers": 2, "hidden_size": 32, "num_hidden_layers": 2,
        "heads_per_sublayer": 4, "kv_heads_per_sublayer": 2, "vocab_size": 61,
        "max_position_embeddings": 32, "bias": True,
    } | changes  # fmt: skip
    decoder = Decoder(ModelConfig(**fields))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder.to(torch.bfloat16).requires_grad_(False).eval()


def plain_maps(decoder: Decoder) -> list[BranchLinear]:
    return [module for module in decoder.modules() if isinstance(module, BranchLinear)]


def hidden(decoder: Decoder) -> torch.Tensor:
    ids = torch.arange(20).view(2, 10)
    return decoder(
        decoder.embed_tokens(ids), torch.arange(10)[None], SdpaCore(), LocalReducer()
    ).float()


@needs_packing
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("own_streams", [False, True])
@pytest.mark.parametrize("bias", ["none", "one", "each"])
@pytest.mark.parametrize("with_gelu", [None, "tanh", "none"])
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_packed_map_rounds_the_plain_maps_result(branches, own_streams, bias, with_gelu, tokens):
    torch.manual_seed(branches)
    linear = drawn_map(branches, {"none": 0, "one": 1, "each": branches}[bias])
    x = torch.randn(branches if own_streams else 1, 2, tokens, 40).to(torch.bfloat16)
    found = PackedLinear(linear, gelu=with_gelu)(x)
    plain = linear(x)
    exact = linear.float()(x.float())
    if with_gelu is not None:
        plain, exact = (torch.nn.functional.gelu(y, approximate=with_gelu) for y in (plain, exact))
    assert (found.shape, found.dtype) == (plain.shape, torch.bfloat16)
    torch.testing.assert_close(found.float(), exact, atol=1e-3, rtol=BF16_STEP)
    torch.testing.assert_close(found, plain, atol=2e-2, rtol=4 * BF16_STEP)


@needs_packing
def test_a_packed_matrix_takes_any_leading_shape():
    weight, bias = torch.randn(7, 40).to(torch.bfloat16), torch.randn(7).to(torch.bfloat16)
    x = torch.randn(3, 1, 2, 40).to(torch.bfloat16)
    found = PackedMatrix(weight, bias)(x)
    wanted = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
    torch.testing.assert_close(found.float(), wanted, atol=1e-3, rtol=BF16_STEP)
    assert PackedMatrix(weight)(x[0, 0, 0]).shape == (7,)


@needs_packing
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("activation", ["gelu", "gelu-exact", "swiglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_decoder_has_no_plain_map_left_and_the_same_results(wiring, activation, bias):
    decoder = drawn_decoder(wiring, activation=activation, bias=bias)
    exact = hidden(drawn_decoder(wiring, activation=activation, bias=bias).float())
    plain = hidden(decoder)
    pack(decoder)
    assert not plain_maps(decoder)
    found = hidden(decoder)
    # Final norms leave values of about 1; packed is as near to float32 as plain bfloat16 is.
    scale = exact.std()
    assert (found - exact).std() < 0.03 * scale
    assert (found - exact).std() < 1.3 * (plain - exact).std()


@needs_packing
def test_plain_weights_are_let_go_one_by_one(monkeypatch):
    decoder = drawn_decoder()
    weights = [weakref.ref(linear.weight) for linear in plain_maps(decoder)]
    alive: list[int] = []

    class Watched(PackedLinear):
        def __init__(self, linear, **options) -> None:
            alive.append(sum(weight() is not None for weight in weights))
            super().__init__(linear, **options)

    monkeypatch.setattr(packed, "PackedLinear", Watched)
    pack(decoder)
    # The one at hand, those to come, and at most the one before.
    assert all(n <= len(weights) - done + 1 for done, n in enumerate(alive))
    assert len(alive) == len(weights)
    assert not any(weight() is not None for weight in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_types_than_bfloat16_stay_plain(dtype):
    assert not can_pack(torch.empty(1, dtype=dtype))
    decoder = drawn_decoder().to(dtype)
    maps = plain_maps(decoder)
    pack(decoder)
    assert plain_maps(decoder) == maps


@needs_packing
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_engine_packs_unless_told_not_to(function):
    config = drawn_decoder(**function).config
    logits = []
    for wanted in (True, False):
        torch.manual_seed(0)
        engine = Engine.random(config, ALONE, torch.bfloat16, EngineOptions(pack=wanted))
        assert bool(plain_maps(engine.decoder)) != wanted
        assert isinstance(engine.head, PackedMatrix) == wanted
        with engine.session([[1, 2, 3], [4]], 3) as session:
            rows = [session.prefill(), session.decode(torch.tensor([5, 6])).clone()]
            rows.append(session.decode(torch.tensor([7, 8])).clone())  # replayed
        logits.append(torch.stack(rows).float())
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[1].abs().max()
