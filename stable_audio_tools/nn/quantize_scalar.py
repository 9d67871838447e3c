"""Finite scalar quantisation: every channel is rounded to a few levels, and the channels of a codebook count as one token.

B batch, T frames, Q codebooks, D channels of a codebook, L levels of a channel. Tokens are (B, Q, T) int64; the first channel is the
lowest digit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .exact import at_least_single, no_autocast
from .quantize import straight_through


class LevelGrid(nn.Module):
    """Positions 0..L-1 on each of D channels <-> tokens 0..prod(L)-1."""

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.size = math.prod(levels)
        basis = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def tokens(self, positions: Tensor) -> Tensor:
        """Positions (..., D), whole or nearly so -> (...) int64."""
        whole = positions.round().to(torch.int64).clamp(min=torch.zeros_like(self.levels), max=self.levels - 1)
        return (whole * self.basis).sum(-1)

    def positions(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., D) int64."""
        return tokens[..., None] // self.basis % self.levels


class FSQ(nn.Module):
    """Channels bounded by tanh and rounded (arXiv:2309.15505); Q codebooks side by side.

    Args:
        levels: of each channel of a codebook, 2 or more.
        num_codebooks: Q.
        dim: width outside; a linear map leads to the Q * D channels where it differs, with `bias` or not.
    """

    margin = 1e-3  # tanh saturates this much beyond the outer levels, so that they are reached (the paper's appendix A.1)

    def __init__(self, levels: tuple[int, ...], *, num_codebooks: int = 1, dim: int | None = None, bias: bool = True):
        super().__init__()
        width = len(levels) * num_codebooks
        dim = dim or width
        self.num_codebooks = num_codebooks
        self.grid = LevelGrid(levels)
        self.project_in = nn.Linear(dim, width, bias=bias) if dim != width else nn.Identity()
        self.project_out = nn.Linear(width, dim, bias=bias) if dim != width else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, dim) -> quantised (B, T, dim) and tokens (B, Q, T)."""
        x = self.project_in(x)
        with no_autocast(x):
            wide = at_least_single(x).unflatten(-1, (self.num_codebooks, -1))
            bounded = self._bound(wide)
            rounded = bounded.round()
            half = self.grid.levels // 2
            codes = straight_through(bounded, rounded) / half
        return self.project_out(codes.flatten(-2).to(x.dtype)), self.grid.tokens(rounded + half).mT

    def tokenize(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, Q, T)."""
        return self(x)[1]

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, Q, T) -> (B, T, dim), float32 where there are no weights."""
        half = self.grid.levels // 2
        codes = ((self.grid.positions(tokens.mT) - half) / half).flatten(-2)
        return self.project_out(codes.to(self.project_out.weight.dtype) if isinstance(self.project_out, nn.Linear) else codes)

    def _bound(self, x: Tensor) -> Tensor:
        """Into -L/2..L/2, where rounding gives each channel exactly its levels; 0 stays 0."""
        levels = self.grid.levels.to(x.dtype)
        half = (levels - 1) * (1 + self.margin) / 2
        offset = torch.where(self.grid.levels % 2 == 0, 0.5, 0.0).to(x.dtype)
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset


class DitheredFSQ(nn.Module):
    """Channels through tanh to L evenly spaced levels from -1 to 1; training mostly adds noise of one step instead of rounding.

    Per item: with probability `noise_dropout` without noise; then rounded, or with that probability again not even that.

    Args:
        levels: of each channel of a codebook, 2 or more.
        num_codebooks: Q.
    """

    def __init__(self, levels: tuple[int, ...], *, num_codebooks: int = 1, noise_dropout: float = 0.05):
        super().__init__()
        self.grid = LevelGrid(levels)
        self.num_codebooks, self.noise_dropout = num_codebooks, noise_dropout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, Q * D) -> quantised, same shape, and tokens (B, Q, T), those of the nearest levels in training."""
        with no_autocast(x):
            bounded = self._bound(x)
            codes = self._dither(bounded) if self.training else self._round(bounded)
            tokens = self.grid.tokens((codes.detach() + 1) / self._step(codes))
        return codes.flatten(-2).to(x.dtype), tokens.mT

    def tokenize(self, x: Tensor) -> Tensor:
        """(B, T, Q * D) -> (B, Q, T), whatever the mode."""
        with no_autocast(x):
            bounded = self._bound(x)
            return self.grid.tokens((bounded + 1) / self._step(bounded)).mT

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, Q, T) -> (B, T, Q * D) float32."""
        positions = self.grid.positions(tokens.mT).float()
        return (positions * self._step(positions) - 1).flatten(-2)

    def _bound(self, x: Tensor) -> Tensor:
        """(B, T, Q * D) -> (B, T, Q, D) in -1..1."""
        return torch.tanh(at_least_single(x).unflatten(-1, (self.num_codebooks, -1)))

    def _step(self, like: Tensor) -> Tensor:
        """Between two levels, (D,)."""
        return 2 / (self.grid.levels - 1).to(like.dtype)

    def _round(self, x: Tensor) -> Tensor:
        step = self._step(x)
        return straight_through(x, ((x + 1) / step).round() * step - 1)

    def _dither(self, x: Tensor) -> Tensor:
        free, silent = (torch.rand(len(x), 1, 1, 1, device=x.device) < self.noise_dropout for _ in range(2))
        noisy = x + (torch.rand_like(x) - 0.5) * self._step(x)
        return torch.where(silent, torch.where(free, x, self._round(x)), noisy)
