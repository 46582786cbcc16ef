"""Causal attention on CPUs in blocks of rows, for inference and for training.

PyTorch's CPU ``scaled_dot_product_attention`` spends most of its time outside the products. Blocks
of rows over two batched products and one softmax, with the columns behind the diagonal left out,
take about half as long (docs/results). The naive reference is in the tests.

Shape letters: see ``krakenlm.model``; R is the query heads that share a key head, P the positions
that keys are there for, X the key heads of the whole batch, Y the R rows of one block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def attend_in_blocks(
    q_BHTE: Tensor,
    k_BGPE: Tensor,
    v_BGPE: Tensor,
    scaling: float,
    *,
    out_BHTE: Tensor | None = None,
    logsumexp_XRT: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last T of P positions, as o_BTHE.

    The scores of a block stay in the caches of a core; a wider block, or all rows at once, costs
    more in memory traffic than it saves in calls. A batched product copies what does not lie
    densely, and turns transposed keys around on the way; dense copies of the rows it needs, made
    here, are cheaper.

    Args:
        q_BHTE: queries.
        k_BGPE: keys.
        v_BGPE: values.
        scaling: of the scores.
        out_BHTE: written to and returned, transposed; by default memory of the queries' shape.
        logsumexp_XRT: is given the logarithm of each row's sum of exponentials.
    """
    batch, heads, tokens, head_dim = q_BHTE.shape
    groups, past = k_BGPE.shape[1], k_BGPE.shape[2] - tokens
    out_BHTE = torch.empty(q_BHTE.shape, dtype=q_BHTE.dtype) if out_BHTE is None else out_BHTE
    o_BGRTE = out_BHTE.view(batch, groups, -1, tokens, head_dim)
    values_XPE = v_BGPE.flatten(0, 1)
    for rows, scores_XYP, _ in _scores(q_BHTE, k_BGPE, scaling):
        end = past + rows.stop
        if logsumexp_XRT is not None:
            sums_XY = scores_XYP.to(logsumexp_XRT.dtype).logsumexp(-1)
            logsumexp_XRT[:, :, rows] = sums_XY.view(batch * groups, heads // groups, -1)
        o_XYE = torch.bmm(scores_XYP.softmax(-1), values_XPE[:, :end])
        o_BGRTE[:, :, :, rows] = o_XYE.view(batch, groups, heads // groups, -1, head_dim)
    return out_BHTE.transpose(1, 2)


def _scores(
    q_BHTE: Tensor, k_BGPE: Tensor, scaling: float
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, Tensor]]]:
    """Block by block: its rows, their masked scores_XYP, and the q_XYE and k_XPE behind them."""
    batch, heads, tokens, head_dim = q_BHTE.shape
    groups, past = k_BGPE.shape[1], k_BGPE.shape[2] - tokens
    size = 64 if q_BHTE.dtype == torch.float32 else 128
    scaled_BHTE = torch.mul(q_BHTE, scaling, out=q_BHTE.new_empty(q_BHTE.shape))
    q_XRTE = scaled_BHTE.view(batch * groups, heads // groups, tokens, head_dim)
    keys_XPE = k_BGPE.flatten(0, 1)
    diagonal = _above_diagonal(min(size, tokens), q_BHTE.dtype)
    for first in range(0, tokens, size):
        rows = slice(first, min(first + size, tokens))
        count = rows.stop - first
        q_XYE = q_XRTE[:, :, rows].reshape(batch * groups, -1, head_dim)
        k_XPE = keys_XPE[:, : past + rows.stop].contiguous()
        scores_XYP = torch.bmm(q_XYE, k_XPE.transpose(1, 2))
        block_XRSP = scores_XYP.view(batch * groups, -1, count, past + rows.stop)
        block_XRSP[..., past + first :] += diagonal[:count, :count]
        yield rows, scores_XYP, (q_XYE, k_XPE)


def _above_diagonal(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)


def attend_in_blocks_with_gradient(
    q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, scaling: float
) -> Tensor:
    """Causal attention as o_BTHE, in memory as well, that gradients flow through.

    As FlashAttention does (arXiv 2205.14135), the backward pass computes the weights anew, from
    the queries, the keys and one number a row.
    """
    found: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
        q_BHTE, k_BGTE, v_BGTE, scaling
    )
    return found


class _BlockAttention(torch.autograd.Function):
    """``attend_in_blocks`` over as many queries as keys, with its gradient."""

    @staticmethod
    def forward(ctx: Any, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, scaling: float) -> Tensor:
        batch, heads, tokens, head_dim = q_BHTE.shape
        groups = k_BGTE.shape[1]
        o_BTHE = q_BHTE.new_empty(batch, tokens, heads, head_dim)
        precise = torch.promote_types(q_BHTE.dtype, torch.float32)
        sums_XRT = q_BHTE.new_empty(batch * groups, heads // groups, tokens, dtype=precise)
        with torch.autocast("cpu", enabled=False):
            attend_in_blocks(
                *(q_BHTE, k_BGTE, v_BGTE, scaling),
                out_BHTE=o_BTHE.transpose(1, 2),
                logsumexp_XRT=sums_XRT if any(ctx.needs_input_grad) else None,
            )
        ctx.save_for_backward(q_BHTE, k_BGTE, v_BGTE, o_BTHE, sums_XRT)
        ctx.scaling = scaling
        return o_BTHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With weights P and scores S: dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dQ = dS K."""
        (grad_BTHE,) = grads
        q_BHTE, k_BGTE, v_BGTE, o_BTHE, sums_XRT = ctx.saved_tensors
        batch, heads, tokens, head_dim = q_BHTE.shape
        groups = k_BGTE.shape[1]
        precise = sums_XRT.dtype
        grad_XRTE = _by_group(grad_BTHE, groups)
        share_XRT = _by_group((grad_BTHE * o_BTHE).sum(-1, keepdim=True, dtype=precise), groups)[
            ..., 0
        ]
        values_XTE = v_BGTE.flatten(0, 1)
        grad_q_BHTE = torch.empty(q_BHTE.shape, dtype=q_BHTE.dtype)
        grad_q_XRTE = grad_q_BHTE.view(batch * groups, -1, tokens, head_dim)
        grad_k_XTE = torch.zeros(values_XTE.shape, dtype=precise)
        grad_v_XTE = torch.zeros(values_XTE.shape, dtype=precise)
        for rows, scores_XYP, (q_XYE, k_XPE) in _scores(q_BHTE, k_BGTE, ctx.scaling):
            seen = slice(0, rows.stop)
            grad_XYE = grad_XRTE[:, :, rows].reshape(batch * groups, -1, head_dim)
            weights_XYP = (scores_XYP - sums_XRT[:, :, rows].flatten(1)[..., None]).exp_()
            inner_XYP = torch.bmm(grad_XYE, values_XTE[:, seen].transpose(1, 2))
            slope_XYP = (inner_XYP - share_XRT[:, :, rows].flatten(1)[..., None]).mul_(weights_XYP)
            slope_XYP, weights_XYP = slope_XYP.to(q_BHTE.dtype), weights_XYP.to(q_BHTE.dtype)
            grad_v_XTE[:, seen] += torch.bmm(weights_XYP.transpose(1, 2), grad_XYE)
            grad_k_XTE[:, seen] += torch.bmm(slope_XYP.transpose(1, 2), q_XYE)
            grad_q_XYE = torch.bmm(slope_XYP, k_XPE).mul_(ctx.scaling)
            grad_q_XRTE[:, :, rows] = grad_q_XYE.view(batch * groups, heads // groups, -1, head_dim)
        grad_k, grad_v = (
            grad.to(q_BHTE.dtype).view(k_BGTE.shape) for grad in (grad_k_XTE, grad_v_XTE)
        )
        return grad_q_BHTE, grad_k, grad_v, None


def _by_group(x_BTHE: Tensor, groups: int) -> Tensor:
    """[B, T, H, E] as x_XRTE."""
    batch, tokens, heads, width = x_BTHE.shape
    x_BGRTE = x_BTHE.view(batch, tokens, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
    return x_BGRTE.reshape(batch * groups, heads // groups, tokens, width)
