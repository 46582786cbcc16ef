"""The engine's KV cache: allocated once, filled in place.

Shape letters: see ``krakenlm.model``; L is layers, C capacity in tokens.
"""

import torch
from torch import Tensor

from krakenlm.config import ModelConfig


class KVCache:
    """Keys and values of all layers for the branches held here.

    ``update`` writes behind what is there; ``advance`` says that a forward pass is over, since
    all layers of one pass write at the same place.

    Args:
        config: of this rank's part of the model.
        batch: B.
        capacity: C, tokens of prompt and answer together.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (
            config.num_hidden_layers,
            batch,
            config.num_key_value_heads,
            capacity,
            config.head_dim,
        )
        self.keys_LBGCE = torch.empty(shape, dtype=dtype, device=device)
        self.values_LBGCE = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, layer_index: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; return views of all so far."""
        end = self.length + k_BGTE.shape[2]
        assert end <= self.keys_LBGCE.shape[3], "the engine checks the capacity beforehand"
        keys_BGCE, values_BGCE = self.keys_LBGCE[layer_index], self.values_LBGCE[layer_index]
        keys_BGCE[:, :, self.length : end] = k_BGTE
        values_BGCE[:, :, self.length : end] = v_BGTE
        return keys_BGCE[:, :, :end], values_BGCE[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count the tokens of a finished forward pass."""
        self.length += tokens
