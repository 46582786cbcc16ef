"""Multi-head, grouped-query and multi-query attention over all local branches at once.

The heads of all branches stand side by side, so that caches, masks and kernels see one ordinary
layer of H query heads and G key and value heads. The core (scores, softmax, cache) is injected:
``SdpaCore`` here, Hugging Face's in ``integrations.hf``. Shape letters: see ``krakenlm.model``.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm.config import ModelConfig
from krakenlm.model.cache import KVCache
from krakenlm.model.layers import BranchLinear, Norm, branch_dropout
from krakenlm.model.rotary import Rotary, apply_rotary


class AttentionCore(Protocol):
    """Attends with given queries, keys and values, remembering keys and values if it likes."""

    def __call__(
        self, module: "Attention", q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor
    ) -> Tensor:
        """Return o_BTHE. ``module`` tells layer_index, scaling, dropout and group size."""
        ...


class Keep:
    """One position of each sequence: the only one that matters behind the last layer's attention.

    Args:
        rows: which of the new tokens, by sequence.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = list(rows)
        self._same = len(set(rows)) == 1

    def __call__(self, x_SBTD: Tensor) -> Tensor:
        """Cut a stream down to [S, B, 1, D]."""
        if self._same:
            return x_SBTD[:, :, self._rows[0], None]
        return torch.stack([x_SBTD[:, b, row, None] for b, row in enumerate(self._rows)], dim=1)

    def queries(self, q_BHTE: Tensor) -> Tensor:
        """Cut queries down to [B, H, 1, E]."""
        return self(q_BHTE.transpose(0, 1)).transpose(0, 1)


class AttentionContext(NamedTuple):
    """What one forward pass fixes for a layer."""

    core: AttentionCore
    rotary: Rotary | None
    keep: Keep | None = None


class Attention(nn.Module):
    """Queries, keys and values from one product, an injected core, the output product.

    Args:
        config: of the whole model, or of one rank's part of it.
        layer_index: where this layer's keys and values go in a cache.
        output_std: standard deviation of the output map's initial weights.
    """

    is_causal = True

    def __init__(self, config: ModelConfig, layer_index: int, output_std: float) -> None:
        super().__init__()
        branches, head_dim = config.num_sublayers, config.head_dim
        query_width = config.heads_per_sublayer * head_dim
        key_width = config.kv_heads_per_sublayer * head_dim
        self.layer_index = layer_index
        self.head_dim = head_dim
        self.widths = (query_width, key_width, key_width)
        self.num_key_value_groups = config.heads_per_sublayer // config.kv_heads_per_sublayer
        self.scaling = head_dim**-0.5
        self.dropout = config.dropout
        self.own_streams = config.traits.own_streams
        self.qkv = BranchLinear(
            branches,
            config.hidden_size,
            sum(self.widths),
            branches if config.has_qkv_bias else 0,
            config.initializer_range,
        )
        if config.qk_norm:
            self.q_norm = _head_norm(config)
            self.k_norm = _head_norm(config)
        self.normalises_heads = config.qk_norm
        self.output = BranchLinear(
            branches,
            query_width,
            config.hidden_size,
            config.norm_sets if config.bias else 0,
            output_std,
        )

    def forward(self, x_SBTD: Tensor, context: AttentionContext) -> Tensor:
        """What attention adds to each branch, as branches_KBTD."""
        q, k, v = self.qkv(x_SBTD).split(self.widths, dim=-1)
        if self.normalises_heads:
            q, k = self._normal(self.q_norm, q), self._normal(self.k_norm, k)
        # Fused kernels lay out their output as the queries are: so the output map reads, and keeps
        # for the gradient, that very tensor.
        q_BHTE, k_BGTE, v_BGTE = self._by_token(q), self._by_head(k), self._by_head(v)
        if context.rotary is not None:
            q_BHTE = apply_rotary(q_BHTE, context.rotary)
            k_BGTE = apply_rotary(k_BGTE, context.rotary)
        if context.keep is not None:
            q_BHTE = context.keep.queries(q_BHTE)
        o_BTHE = context.core(self, q_BHTE, k_BGTE, v_BGTE)
        batch, tokens = o_BTHE.shape[:2]
        o_KBTI = o_BTHE.reshape(batch, tokens, -1, self.widths[0]).movedim(2, 0)
        return branch_dropout(
            self.output(o_KBTI), self.dropout, training=self.training, own_streams=self.own_streams
        )

    def _normal(self, norm: Norm, x_KBTI: Tensor) -> Tensor:
        """Each head of [K, B, T, heads E] normalised by itself."""
        return norm(self._heads(x_KBTI)).flatten(3)

    def _by_token(self, x_KBTI: Tensor) -> Tensor:
        """[K, B, T, heads E] to [B, K heads, T, E], in memory as [B, T, K heads, E]."""
        return self._heads(x_KBTI).permute(1, 2, 0, 3, 4).flatten(2, 3).transpose(1, 2)

    def _by_head(self, x_KBTI: Tensor) -> Tensor:
        """[K, B, T, heads E] to [B, K heads, T, E], in memory as well."""
        return self._heads(x_KBTI).permute(1, 0, 3, 2, 4).flatten(1, 2)

    def _heads(self, x_KBTI: Tensor) -> Tensor:
        """[K, B, T, heads E] to [K, B, T, heads, E]."""
        return x_KBTI.view(*x_KBTI.shape[:-1], -1, self.head_dim)


def _head_norm(config: ModelConfig) -> Norm:
    return Norm(config.norm_sets, config.head_dim, config.norm_eps, bias=False, rms=True)


class SdpaCore:
    """PyTorch's scaled dot product, causal, with an optional static cache.

    The plain reference of every faster core. Sequences of one batch have the same length here.

    Args:
        cache: where keys and values go; without one each pass stands alone.
        start: tokens in the cache already.
    """

    def __init__(self, cache: KVCache | None = None, start: int = 0) -> None:
        self._cache = cache
        self._start = start

    def __call__(self, module: Attention, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor) -> Tensor:
        """Attend to the cache and to the new tokens up to each query's own position."""
        if self._cache is not None:
            k_BGTE, v_BGTE = self._cache.store(module.layer_index, self._start, k_BGTE, v_BGTE)
        dropout = module.dropout if module.training else 0.0
        return causal_attention(q_BHTE, k_BGTE, v_BGTE, scaling=module.scaling, dropout=dropout)


def causal_attention(
    q_BHTE: Tensor, k_BGPE: Tensor, v_BGPE: Tensor, *, scaling: float, dropout: float = 0.0
) -> Tensor:
    """PyTorch's fused attention of the last T of P positions, as o_BTHE."""
    queries, keys = q_BHTE.shape[2], k_BGPE.shape[2]
    mask = None
    if 1 < queries < keys:
        # is_causal aligns the first query with the first key; here the last ones align.
        mask = q_BHTE.new_ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    o_BHTE = F.scaled_dot_product_attention(
        q_BHTE,
        k_BGPE,
        v_BGPE,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=queries == keys and queries > 1,
        scale=scaling,
        enable_gqa=q_BHTE.shape[1] > k_BGPE.shape[1],
    )
    return o_BHTE.transpose(1, 2)
