"""Numbers and positions as vectors: Fourier features, rotary tables, absolute positions.

Angles are computed in float32 whatever the model's precision: at position 1000 a half-precision frequency is off by half a turn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .exact import FixedBuffers

ROTARY_BASE = 10000.0  # arXiv:2104.09864, section 3.3


class FourierFeatures(nn.Module):
    """cos and sin of 2 pi w x with learned frequencies w ~ N(0, std^2). arXiv:2006.10739, section 4.

    Args:
        out_features: even; half of them cosines, half sines.
    """

    def __init__(self, out_features: int, *, std: float = 1.0):
        super().__init__()
        if out_features % 2:
            raise ValueError(f"out_features must be even, got {out_features}")
        self.weight = nn.Parameter(torch.randn(out_features // 2, 1) * std)

    def forward(self, x: Tensor) -> Tensor:
        """(...) to (..., out_features), in the dtype of the weights."""
        # An elementwise product, since a matrix product would round the angles under autocast.
        angles = 2 * math.pi * x.float()[..., None] * self.weight.float()[:, 0]
        return torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.weight.dtype)


class LearnedFrequencies(nn.Module):
    """[x, sin(2 pi w x), cos(2 pi w x)] with learned frequencies w ~ N(0, 1).

    Args:
        num_frequencies: the output has 2 * num_frequencies + 1 features.
    """

    def __init__(self, num_frequencies: int):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(num_frequencies))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()[:, None]
        angles = 2 * math.pi * x * self.weights.float()
        return torch.cat((x, angles.sin(), angles.cos()), dim=-1).to(self.weights.dtype)


class NumberEmbedding(nn.Module):
    """A number as a vector: 257 Fourier features and a linear layer."""

    def __init__(self, dim: int, *, num_frequencies: int = 128):
        super().__init__()
        self.embedding = nn.Sequential(LearnedFrequencies(num_frequencies), nn.Linear(2 * num_frequencies + 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B,) to (B, dim)."""
        return self.embedding(x)


class RotaryTable(NamedTuple):
    """Rotation of each position: cos and sin, float32, of angles (N, R / 2), or (B, 1, N, R / 2) where items differ."""

    cos: Tensor
    sin: Tensor


class RotaryEmbedding(FixedBuffers):
    """Makes the rotary table of a sequence; one table serves every layer of a forward. arXiv:2104.09864.

    Args:
        dim: channels of a head that rotate; of an odd number one more does, at frequencies of that number, as in published models.
    """

    inv_freq: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("inv_freq", 1 / ROTARY_BASE ** (torch.arange(0, dim, 2).float() / dim))

    def forward(self, positions: int | Tensor) -> RotaryTable:
        """The first so many positions, or given ones, whole or not: (N,), or (B, N) where items differ."""
        if isinstance(positions, int):
            positions = torch.arange(positions, device=self.inv_freq.device)
        angles = positions.float()[..., None] * self.inv_freq
        if positions.ndim == 2:
            angles = angles[:, None]
        return RotaryTable(angles.cos(), angles.sin())


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate the first R channels of each head; the others pass.

    Channel i turns with channel i + R / 2, the layout of published checkpoints.

    Args:
        x: (B, H, N, D) queries or keys.
        table: for the N positions.
    """
    half = table.cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (a * table.cos - b * table.sin, b * table.cos + a * table.sin)
    return torch.cat((*(part.to(x.dtype) for part in turned), rest), dim=-1)


class AbsolutePositions(nn.Module):
    """A learned vector per position, scaled by 1 / sqrt(dim)."""

    def __init__(self, dim: int, max_length: int):
        super().__init__()
        self.scale, self.max_length = dim**-0.5, max_length
        self.emb = nn.Embedding(max_length, dim)

    def forward(self, positions: int | Tensor) -> Tensor:
        """Of the first so many positions, (length, dim), or of given whole ones (..., N), (..., N, dim).

        Raises:
            ValueError: a length that exceeds the table, or positions that are no integers.
        """
        if isinstance(positions, int):
            self.check(positions)
            return self.emb.weight[:positions] * self.scale
        if positions.is_floating_point():
            raise ValueError("learned positions are whole numbers; give integers, or use rotary or sinusoidal positions")
        return self.emb(positions) * self.scale

    def check(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"sequence of {length} tokens, but there are {self.max_length} learned positions; raise abs_pos_emb_max_length"
            )


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position (arXiv:1706.03762, section 3.5) with one learned scale, 1 / sqrt(dim) at first."""

    def __init__(self, dim: int):
        super().__init__()
        if dim % 2:
            raise ValueError(f"sinusoidal positions need an even width, got {dim}")
        self.num_frequencies = dim // 2
        self.scale = nn.Parameter(torch.full((1,), dim**-0.5))

    def forward(self, positions: int | Tensor) -> Tensor:
        """Of the first so many positions, (length, dim), or of given ones (..., N), (..., N, dim)."""
        device = self.scale.device
        if isinstance(positions, int):
            positions = torch.arange(positions, device=device)
        frequencies = ROTARY_BASE ** -(torch.arange(self.num_frequencies, device=device, dtype=torch.float32) / self.num_frequencies)
        angles = positions.float()[..., None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.scale.dtype) * self.scale
