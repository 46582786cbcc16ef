"""Choosing the next token from the logits of the last position."""

from dataclasses import dataclass

import torch
from torch import Tensor

from krakenlm.errors import KrakenError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; the defaults are greedy.

    Attributes:
        temperature: 0 takes the likeliest token; above, logits are divided by it.
        top_k: keep only so many likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
        seed: of the random numbers.

    Raises:
        KrakenError: a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise KrakenError(f"--temperature {self.temperature}: needs 0 or more")
        if self.top_k < 0:
            raise KrakenError(f"--top-k {self.top_k}: needs 1 or more, or 0 for all")
        if not 0 <= self.seed < 1 << 63:
            raise KrakenError(f"--seed {self.seed}: needs 0 or more and less than 2**63")
        if not 0.0 < self.top_p <= 1.0:
            raise KrakenError(f"--top-p {self.top_p}: needs more than 0 and at most 1")


class Sampler:
    """Draws tokens one step after the other; equal logits and seed give equal tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # On the CPU, so that a seed means the same on every kind of device.
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token of each sequence, [B]."""
        sampling = self._sampling
        if sampling.temperature == 0.0:
            return logits_BV.argmax(dim=-1)
        scores_BV = logits_BV.float().cpu() / sampling.temperature
        scores_BV = keep_top_p(keep_top_k(scores_BV, sampling.top_k), sampling.top_p)
        drawn_B1 = torch.multinomial(scores_BV.softmax(-1), 1, generator=self._generator)
        return drawn_B1.squeeze(1).to(logits_BV.device)


def keep_top_k(scores_BV: Tensor, k: int) -> Tensor:
    """Set all but the k highest scores to minus infinity."""
    if k == 0 or k >= scores_BV.shape[-1]:
        return scores_BV
    lowest_kept_B1 = scores_BV.topk(k, dim=-1).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < lowest_kept_B1, float("-inf"))


def keep_top_p(scores_BV: Tensor, p: float) -> Tensor:
    """Set all scores to minus infinity but the likeliest whose probabilities just reach p."""
    if p == 1.0:
        return scores_BV
    sorted_BV, order_BV = scores_BV.sort(dim=-1, descending=True)
    probabilities_BV = sorted_BV.softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    dropped_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(1, order_BV, before_BV >= p)
    return scores_BV.masked_fill(dropped_BV, float("-inf"))
