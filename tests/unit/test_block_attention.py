"""Attention in blocks of rows with its gradient, against a softmax over all scores at once."""

import pytest
import torch
from torch import Tensor

import tiny
from krakenlm.integrations import hf
from krakenlm.integrations.hf_compat import cache_of
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.model.block_attention import attend_in_blocks_with_gradient

# Batch, query heads, key heads, tokens, head_dim. A block has 128 rows in float64 and bfloat16.
SHAPES = [(2, 4, 2, 130, 3), (1, 3, 3, 128, 5), (3, 4, 1, 7, 4), (1, 2, 1, 1, 6)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values, and a gradient of the output; queries lie behind tokens."""
    batch, heads, groups, tokens, width = shape
    torch.manual_seed(0)
    q = torch.randn(batch, tokens, heads, width).to(dtype).transpose(1, 2)
    k, v = (torch.randn(batch, groups, tokens, width).to(dtype) for _ in range(2))
    return [q, k, v, torch.randn(batch, tokens, heads, width).to(dtype)]


def naive(q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, scaling: float) -> Tensor:
    share = q_BHTE.shape[1] // k_BGTE.shape[1]
    k_BHTE, v_BHTE = (x.repeat_interleave(share, dim=1) for x in (k_BGTE, v_BGTE))
    scores = q_BHTE @ k_BHTE.transpose(-1, -2) * scaling
    behind = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(behind, float("-inf")).softmax(-1) @ v_BHTE).transpose(1, 2)


def with_gradients(attend, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone(memory_format=torch.preserve_format) for x in inputs]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = attend(*leaves, 0.4)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_equal_those_of_one_softmax(shape):
    *inputs, grad = drawn(shape, torch.float64)
    found = with_gradients(attend_in_blocks_with_gradient, inputs, grad)
    wanted = with_gradients(naive, inputs, grad)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert found[0].is_contiguous(), "the output map reads it token by token"


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_bfloat16_loses_no_more_than_its_own_precision(shape):
    *inputs, grad = drawn(shape, torch.bfloat16)
    found = with_gradients(attend_in_blocks_with_gradient, inputs, grad)
    exact = with_gradients(naive, [x.double() for x in inputs], grad.double())
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        error = (mine.double() - theirs).norm() / theirs.norm()
        assert error < 0.01


def test_nothing_is_kept_without_a_gradient():
    *inputs, _ = drawn(SHAPES[0], torch.float64)
    with torch.no_grad():
        out = attend_in_blocks_with_gradient(*inputs, 0.4)
    assert out.grad_fn is None
    torch.testing.assert_close(out, naive(*inputs, 0.4))


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []

    def spy(q, k, v, scaling):
        seen.append(tuple(q.shape))
        return attend_in_blocks_with_gradient(q, k, v, scaling)

    monkeypatch.setattr(hf, "attend_in_blocks_with_gradient", spy)
    return seen


def model_of(**changes) -> hf.KrakenForCausalLM:
    torch.manual_seed(0)
    config = KrakenConfig.from_model_config(tiny.model_config(initializer_range=0.3, **changes))
    return hf.KrakenForCausalLM(config).train()


def loss_of(model: hf.KrakenForCausalLM, **inputs) -> Tensor:
    ids = torch.randint(tiny.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss: Tensor = model(ids, labels=ids, **inputs).loss
    return loss


def test_training_in_bfloat16_attends_in_blocks_and_learns_the_same(calls):
    losses = []
    for implementation in ("sdpa", "eager"):
        model = model_of()
        model.set_attn_implementation(implementation)
        loss = loss_of(model, use_cache=False)
        loss.backward()
        losses.append((loss.item(), model.model.layers[0].attention.qkv.weight.grad))
    assert len(calls) == 2, "two layers, in the first model alone"
    (mine, gradient), (theirs, other) = losses
    assert mine == pytest.approx(theirs, rel=1e-2)
    assert (gradient - other).norm() < 0.03 * other.norm()


def test_padding_dropout_float32_and_single_tokens_behind_a_cache_go_another_way(calls):
    loss_of(model_of(dropout=0.1), use_cache=False)
    padded = torch.ones(2, 9, dtype=torch.long)
    padded[0, :3] = 0
    loss_of(model_of(), attention_mask=padded, use_cache=False)
    model = model_of().eval()
    model(torch.tensor([[1, 2, 3]]))
    assert calls == []
    with torch.autocast("cpu", torch.bfloat16):
        past = cache_of(model(torch.tensor([[1, 2, 3]]), use_cache=True))
        assert len(calls) == 2
        model(torch.tensor([[4]]), cache=past)
    assert len(calls) == 2
