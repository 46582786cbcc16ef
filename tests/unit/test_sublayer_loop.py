"""The loop over sub-layers, against which training speed is measured, is the same model."""

import pytest
import torch

from krakenlm.config import ModelConfig
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.model.attention import Attention, AttentionContext, SdpaCore
from krakenlm.model.rotary import rotary
from sublayer_loop import SubLayerLoop, kept_bytes

CONFIG = ModelConfig(
    num_sublayers=4,
    hidden_size=24,
    num_hidden_layers=3,
    heads_per_sublayer=3,
    vocab_size=50,
    max_position_embeddings=16,
)

NORMS = ["layernorm", "rmsnorm"]


def both(norm: str) -> tuple[KrakenForCausalLM, SubLayerLoop]:
    torch.manual_seed(0)
    config = CONFIG.replace(norm=norm)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config, use_cache=False))
    return model, SubLayerLoop(config).take(model.state_dict())


def loss_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model(ids) if isinstance(model, SubLayerLoop) else model(ids, labels=ids).loss


@pytest.mark.parametrize("norm", NORMS)
def test_losses_and_gradients_are_the_same(norm):
    model, loop = (each.double() for each in both(norm))
    ids = torch.randint(50, (2, 16))
    losses = [loss_of(each, ids) for each in (model, loop)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    stacked = model.model.layers[1].attention.qkv.weight.grad
    for i, sublayer in enumerate(loop.layers[1]):
        torch.testing.assert_close(sublayer.qkv.weight.grad, stacked[i], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_keeps_no_more_bytes_than_the_loop(norm, dtype):
    def autocast_loss_of(model, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return loss_of(model, ids)

    ids = torch.randint(50, (2, 16))
    kept, bar = (kept_bytes(each, ids, autocast_loss_of) for each in both(norm))
    assert kept <= bar


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_queries_lie_as_the_output_map_reads_what_attends(position):
    config = CONFIG.replace(position=position)
    laid = []

    def core(module, q_BHTE, k_BGTE, v_BGTE):
        laid.append(q_BHTE.transpose(1, 2).is_contiguous())
        return SdpaCore()(module, q_BHTE, k_BGTE, v_BGTE)

    turns = rotary(torch.arange(5)[None], config) if position == "rope" else None
    attention = Attention(config, 0, 0.02)
    attention(torch.randn(4, 2, 5, config.hidden_size), AttentionContext(core, turns))
    assert laid == [True]


def test_bytes_kept_are_counted_once_and_without_the_weights():
    model = torch.nn.Linear(4, 4, bias=False)
    x = torch.ones(8, 4, requires_grad=True)
    # The product keeps x, sin its argument, and the second factor is the same tensor once more.
    kept = kept_bytes(model, x, lambda m, x: (torch.sin(m(x)) * x).sum())
    product, argument, sine = 8 * 4 * 4, 8 * 4 * 4, 8 * 4 * 4
    assert kept == product + argument + sine
