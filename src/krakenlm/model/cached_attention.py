"""Attention for inference: prompts in blocks of rows, single tokens against a masked cache.

``SdpaCore`` is the reference that both must equal.

Shape letters: see ``krakenlm.model``; R is the query heads that share a key head, P the positions
of the cache that are looked at.
"""

import torch
from torch import Tensor

from krakenlm.model.attention import Attention, causal_attention
from krakenlm.model.block_attention import attend_in_blocks
from krakenlm.model.cache import KVCache


class PrefillCore:
    """New tokens of prompts, all from the same position on, stored and attended to causally.

    Prompts of unequal length are padded on the right: what the padding computes nobody reads, and
    its place in the cache is overwritten before anything attends to it.

    Args:
        cache: where keys and values go.
        start: position of the first new token.
        kept_B: with ``Keep``, the position of each sequence whose query the last layer still has;
            on the cache's device.
    """

    def __init__(self, cache: KVCache, start: int, kept_B: Tensor | None = None) -> None:
        self._cache = cache
        self._start = start
        self._kept_B = kept_B

    def __call__(self, module: Attention, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor) -> Tensor:
        """Return o_BTHE; one query a sequence attends from its kept position."""
        tokens = k_BGTE.shape[2]
        keys_BGPE, values_BGPE = self._cache.store(module.layer_index, self._start, k_BGTE, v_BGTE)
        if q_BHTE.shape[2] < tokens:
            assert self._kept_B is not None
            bias_B11P = causal_bias(self._kept_B, keys_BGPE.shape[2], q_BHTE.dtype)
            return attend_one(q_BHTE, keys_BGPE, values_BGPE, bias_B11P, module.scaling)
        if q_BHTE.device.type == "cpu":
            return attend_in_blocks(q_BHTE, keys_BGPE, values_BGPE, module.scaling)
        return causal_attention(q_BHTE, keys_BGPE, values_BGPE, scaling=module.scaling)


class DecodeCore:
    """One new token of each sequence, at a position of its own.

    All shapes are fixed, so that a pass can be captured once and replayed with other positions.

    Args:
        cache: keys and values so far; the new ones are added.
        positions_B: position of each sequence's new token.
        end: look at this many positions of the cache; more than every position.
    """

    def __init__(self, cache: KVCache, positions_B: Tensor, end: int) -> None:
        self._cache = cache
        self._positions_B = positions_B
        self._end = end
        self._bias_B11P = causal_bias(positions_B, end, cache.keys_LBGCE.dtype)

    def __call__(self, module: Attention, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor) -> Tensor:
        """Return o_BTHE with T = 1."""
        keys_BGPE, values_BGPE = self._cache.store_at(
            module.layer_index, self._positions_B, k_BGTE, v_BGTE, self._end
        )
        return attend_one(q_BHTE, keys_BGPE, values_BGPE, self._bias_B11P, module.scaling)


def causal_bias(positions_B: Tensor, end: int, dtype: torch.dtype) -> Tensor:
    """0 up to each sequence's position and minus infinity behind it, as bias_B11P."""
    columns_P = torch.arange(end, device=positions_B.device)
    behind_BP = columns_P > positions_B[:, None]
    bias_BP = torch.zeros(behind_BP.shape, dtype=dtype, device=positions_B.device)
    return bias_BP.masked_fill(behind_BP, float("-inf"))[:, None, None]


def attend_one(
    q_BH1E: Tensor, k_BGPE: Tensor, v_BGPE: Tensor, bias_B11P: Tensor, scaling: float
) -> Tensor:
    """One query a sequence against masked keys, as o_B1HE."""
    batch, heads, _, head_dim = q_BH1E.shape
    groups = k_BGPE.shape[1]
    q_BGRE = q_BH1E.reshape(batch, groups, heads // groups, head_dim) * scaling
    scores_BGRP = q_BGRE @ k_BGPE.transpose(-1, -2) + bias_B11P
    o_BGRE = scores_BGRP.softmax(-1) @ v_BGPE
    return o_BGRE.reshape(batch, 1, heads, head_dim)
