"""Normalisations of transformer tokens (..., D); parameter names are those of published checkpoints."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormKwargs(TypedDict, total=False):
    """Options of `LayerNorm`."""

    bias: bool
    fix_scale: bool
    force_fp32: bool
    eps: float


class LayerNorm(nn.Module):
    """Layer norm with a gain and, by default, a bias that stays zero.

    Args:
        bias: learn the bias; else it is a buffer.
        fix_scale: keep the gain at one, as a buffer.
        force_fp32: compute in float32 whatever the input.
    """

    def __init__(self, dim: int, *, bias: bool = False, fix_scale: bool = False, force_fp32: bool = False, eps: float = 1e-5):
        super().__init__()
        self.eps, self.force_fp32 = eps, force_fp32
        self.gamma: Tensor
        self.beta: Tensor
        self._weight("gamma", torch.ones(dim), learned=not fix_scale)
        self._weight("beta", torch.zeros(dim), learned=bias)

    def _weight(self, name: str, value: Tensor, *, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        if not self.force_fp32:
            # Weights that travel between processes in bfloat16 meet float32 tokens, and a bias that is a buffer does not travel.
            dtype = torch.promote_types(x.dtype, self.gamma.dtype)
            return F.layer_norm(x, x.shape[-1:], self.gamma.to(dtype), self.beta.to(dtype), self.eps)
        return F.layer_norm(x.float(), x.shape[-1:], self.gamma.float(), self.beta.float(), self.eps).to(x.dtype)


class DynamicTanh(nn.Module):
    """gamma * tanh(alpha x) + beta, a norm without statistics. arXiv:2503.10622; alpha starts at 10 as in published models."""

    def __init__(self, dim: int, *, alpha: float = 10.0):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.gamma, torch.tanh(self.alpha * x))


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch, nearly zero at first. arXiv:2103.17239."""

    def __init__(self, dim: int, *, initial: float = 1e-5):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def unit_length(x: Tensor, dim: int = -1) -> Tensor:
    """x / |x| along `dim`, and zeros stay zeros in every precision: the usual floor of 1e-12 is 0 in float16."""
    return F.normalize(x, dim=dim, eps=max(1e-12, torch.finfo(x.dtype).tiny))
