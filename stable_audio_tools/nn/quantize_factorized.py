"""Residual vector quantisation with learned, factorised codebooks, as in the Descript audio codec (arXiv:2306.06546, section 3.2).

Each stage looks up in a few channels, by direction alone (arXiv:2110.04627). B batch, C channels, T frames, D codebook channels,
K codebook entries, Q codebooks. Tokens are (B, Q, T) int64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .conv import WNConv1d
from .exact import at_least_single, no_autocast
from .quantize import straight_through, unit


class Quantized(NamedTuple):
    """What a stage, or all of them, made of (B, C, T).

    latents: (B, C, T), the sum over stages.
    tokens: (B, T), or (B, Q, T) of all stages.
    projected: (B, D, T) before the lookup, those of all stages one below the other.
    commitment, codebook: mean squared distances to the entries, (B,) of a stage, a scalar summed over stages. The first moves what is
        looked up, the second the entries.
    """

    latents: Tensor
    tokens: Tensor
    projected: Tensor
    commitment: Tensor
    codebook: Tensor


class FactorizedVQ(nn.Module):
    """One stage: down to D channels, the entry of the nearest direction, back to C channels."""

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.in_proj = WNConv1d(dim, codebook_dim, 1)
        self.out_proj = WNConv1d(codebook_dim, dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, x: Tensor) -> Quantized:
        projected = self.in_proj(x)
        tokens = self._nearest(projected)
        entries = self.codebook(tokens).mT
        commitment = (projected - entries.detach()).square().mean((1, 2))
        codebook = (entries - projected.detach()).square().mean((1, 2))
        latents = self.out_proj(straight_through(projected, entries))
        return Quantized(latents, tokens, projected, commitment, codebook)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, C, T)."""
        return self.out_proj(self.codebook(tokens).mT)

    def _nearest(self, projected: Tensor) -> Tensor:
        """(B, D, T) -> (B, T): the entry at the smallest angle."""
        with torch.no_grad(), no_autocast(projected):
            directions = unit(at_least_single(projected).mT)
            return (directions @ unit(at_least_single(self.codebook.weight)).mT).argmax(-1)


class ResidualFactorizedVQ(nn.Module):
    """(B, C, T) as a sum of Q stages, each given what those before it left.

    Args:
        dim: C.
        codebook_dims: D of each stage.
        dropout: share of a batch's items that in training use only the first 1..Q stages, drawn per item.
    """

    def __init__(self, dim: int, codebook_size: int, codebook_dims: tuple[int, ...], *, dropout: float = 0.0):
        super().__init__()
        self.quantizers = nn.ModuleList(FactorizedVQ(dim, codebook_size, codebook_dim) for codebook_dim in codebook_dims)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Quantized:
        latents, residual, stages = torch.zeros_like(x), x, []
        used = self._used(x)  # (B, Q)
        for stage, mask in zip(self._stages, used.unbind(1), strict=True):
            stages.append(stage(residual))
            latents = latents + stages[-1].latents * mask[:, None, None]
            residual = residual - stages[-1].latents
        commitment, codebook = ((torch.stack([getattr(s, name) for s in stages], 1) * used).mean(0).sum() for name in Quantized._fields[3:])
        tokens, projected = torch.stack([s.tokens for s in stages], 1), torch.cat([s.projected for s in stages], 1)
        return Quantized(latents, tokens, projected, commitment, codebook)

    def tokenize(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, Q, T) by all stages, whatever the mode."""
        tokens = []
        for stage in self._stages:
            quantized = stage(x)
            tokens.append(quantized.tokens)
            x = x - quantized.latents
        return torch.stack(tokens, 1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, q, T) tokens of the first q stages -> (B, C, T)."""
        parts = [stage.lookup(indices) for stage, indices in zip(self._stages, tokens.unbind(1), strict=False)]
        latents = torch.zeros_like(parts[0])
        for part in parts:
            latents = latents + part
        return latents

    @property
    def _stages(self) -> list[FactorizedVQ]:
        return list(self.quantizers)  # type: ignore[arg-type]

    def _used(self, x: Tensor) -> Tensor:
        """(B, Q) of 1 and 0: the stages that each item uses."""
        items, count = len(x), len(self.quantizers)
        used = x.new_ones(items, count)
        shortened = int(items * self.dropout) if self.training else 0
        if shortened:
            last = torch.randint(1, count + 1, (shortened, 1), device=x.device)
            used[:shortened] = (torch.arange(count, device=x.device) < last).to(used)
        return used
