"""Convolutions under spectral normalisation, w / sigma(w) with sigma the largest singular value (arXiv:1802.05957).

Names in the state_dict are those of torch's `spectral_norm` hook, which keeps a computed weight on the module and so cannot be
deep-copied once it has run: `weight_orig`, and the buffers `weight_u` and `weight_v`, the singular vectors found so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _SpectralNorm(nn.Module):
    """One step of power iteration at each forward pass in training; none in eval mode.

    output_axis: the axis of the weight that counts output channels, the rows of the matrix w.
    """

    output_axis = 0
    weight: Tensor
    weight_orig: Tensor
    weight_u: Tensor
    weight_v: Tensor

    def _own_spectral_norm(self) -> None:
        weight = self.weight.detach()
        del self.weight
        self.weight_orig = nn.Parameter(weight)
        rows, columns = self._matrix().shape
        self.register_buffer("weight_u", _unit(weight.new_empty(rows).normal_()))
        self.register_buffer("weight_v", _unit(weight.new_empty(columns).normal_()))

    def _matrix(self) -> Tensor:
        return self.weight_orig.movedim(self.output_axis, 0).flatten(1)

    def effective_weight(self) -> Tensor:
        """The weight the convolution uses."""
        matrix = self._matrix()
        u, v = self._iterate(matrix) if self.training else (self.weight_u, self.weight_v)
        return self.weight_orig / torch.dot(u, matrix @ v)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        v = _unit(matrix.T @ self.weight_u)
        u = _unit(matrix @ v)
        self.weight_u.copy_(u)
        self.weight_v.copy_(v)
        return u, v


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=0, eps=1e-12)


class SNConv1d(_SpectralNorm, nn.Conv1d):
    """`nn.Conv1d` under spectral normalisation; same arguments."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._own_spectral_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)


class SNConvTranspose1d(_SpectralNorm, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` under spectral normalisation; same arguments, zero padding."""

    output_axis = 1

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._own_spectral_norm()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        sizes = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose1d(x, self.effective_weight(), self.bias, *sizes)  # type: ignore[arg-type]
