"""The engine's KV cache: allocated once, filled in place.

Shape letters: see ``krakenlm.model``; L is layers, C capacity in tokens.
"""

import torch
from torch import Tensor

from krakenlm.config import ModelConfig


class KVCache:
    """Keys and values of all layers for the branches held here.

    ``store`` writes a run of tokens at one place, ``store_at`` one token of each sequence at a
    place of its own. Who attends knows how far each sequence reaches; the cache does not.

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
        # Zeros, since attention reads whole buckets and multiplies what is masked by nought.
        self.keys_LBGCE = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBGCE = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def batch(self) -> int:
        """B."""
        return self.keys_LBGCE.shape[1]

    @property
    def capacity(self) -> int:
        """C."""
        return self.keys_LBGCE.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys_LBGCE.nbytes + self.values_LBGCE.nbytes

    def store(
        self, layer_index: int, start: int, k_BGTE: Tensor, v_BGTE: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store tokens from position ``start`` on; return views of all up to their end."""
        end = start + k_BGTE.shape[2]
        assert end <= self.capacity, "the engine checks the capacity beforehand"
        keys_BGCE, values_BGCE = self.keys_LBGCE[layer_index], self.values_LBGCE[layer_index]
        keys_BGCE[:, :, start:end] = k_BGTE
        values_BGCE[:, :, start:end] = v_BGTE
        return keys_BGCE[:, :, :end], values_BGCE[:, :, :end]

    def store_at(
        self, layer_index: int, positions_B: Tensor, k_BG1E: Tensor, v_BG1E: Tensor, end: int
    ) -> tuple[Tensor, Tensor]:
        """Store one token of each sequence at its position; return views of ``end`` positions."""
        keys_BGCE, values_BGCE = self.keys_LBGCE[layer_index], self.values_LBGCE[layer_index]
        place = (torch.arange(len(positions_B), device=positions_B.device), positions_B)
        keys_BGCE.transpose(1, 2).index_put_(place, k_BG1E[:, :, 0])
        values_BGCE.transpose(1, 2).index_put_(place, v_BG1E[:, :, 0])
        return keys_BGCE[:, :, :end], values_BGCE[:, :, :end]
