"""Rotary positions (arXiv 2104.09864): the angles, and what they turn.

Shape letters: see ``krakenlm.model``; R is the channels of a head that are turned.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from krakenlm.config import ModelConfig


class Rotary(NamedTuple):
    """Cosines and sines of the positions at hand, as [B or 1, 1, T, R/2] in float32."""

    cos: Tensor
    sin: Tensor


def rotary(positions_BT: Tensor, config: ModelConfig) -> Rotary:
    """The angles of some positions, the two halves of the R channels forming the pairs."""
    frequencies = _frequencies(config, positions_BT.device)
    angles = positions_BT[:, None, :, None].float() * frequencies
    return Rotary(angles.cos(), angles.sin())


def apply_rotary(x_BHTE: Tensor, angles: Rotary) -> Tensor:
    """Turn each pair (x_r, x_{r + R/2}) by its position's angle; in memory [B, T, H, E].

    Channels from R on stay as they are.
    """
    cos, sin = (part.transpose(1, 2).to(x_BHTE.dtype) for part in angles)
    x_BTHE, half = x_BHTE.transpose(1, 2), cos.shape[-1]
    first, second = x_BTHE[..., :half], x_BTHE[..., half : 2 * half]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < x_BTHE.shape[-1]:
        parts.append(x_BTHE[..., 2 * half :])
    return torch.cat(parts, dim=-1).transpose(1, 2)


def _frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians that each pair turns by from one position to the next, [R/2] in float32."""
    width = config.rotary_dim or config.head_dim
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-exponents / width)
    if config.rope_stretch == "none":
        return frequencies
    stretched = frequencies / config.rope_factor
    if config.rope_stretch == "linear":
        return stretched
    kept = _kept_by_llama3(frequencies, config)
    return kept * frequencies + (1 - kept) * stretched


def _kept_by_llama3(frequencies: Tensor, config: ModelConfig) -> Tensor:
    """How much of each frequency Llama 3.1 leaves: 1 of high ones, 0 of low ones, a ramp between.

    The ramp is over the turns that a pair makes within the original context.
    """
    turns = config.rope_original_context * frequencies / (2 * math.pi)
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)
