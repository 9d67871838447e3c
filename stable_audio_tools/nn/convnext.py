"""ConvNeXt in one dimension: depthwise convolution, then a wide pointwise network, as a residual block (arXiv:2201.03545).

Parameter names and the indices inside the `ModuleList`s and `Sequential`s are file format. B batch, C channels, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conv import WNConv1d


class ConvNeXtBlock(nn.Module):
    """(B, C, T) to the same shape; the identity at first.

    Args:
        dim: channels C.
        kernel_size: of the depthwise convolution, odd.
        mult: inner width as a multiple of `dim`.
        glu: gate the inner channels and apply SiLU, instead of GELU.
    """

    def __init__(self, dim: int, *, kernel_size: int = 7, mult: int = 4, glu: bool = False):
        super().__init__()
        self.glu = glu
        self.dw_conv = WNConv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.proj_up = WNConv1d(dim, dim * mult * (2 if glu else 1), 1)
        self.proj_down = WNConv1d(dim * mult, dim, 1)
        nn.init.zeros_(self.proj_down.weight_g)
        if self.proj_down.bias is not None:
            nn.init.zeros_(self.proj_down.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.proj_up(self.dw_conv(x))
        if self.glu:
            value, gate = inner.chunk(2, dim=1)
            inner = F.silu(value * torch.sigmoid(gate))
        else:
            inner = F.gelu(inner)
        return x + self.proj_down(inner)


class ConvNeXtStage(nn.Module):
    """Blocks, then a convolution that shortens by `stride` and changes the width."""

    def __init__(self, width: int, width_out: int, stride: int, blocks: int, *, kernel_size: int, mult: int, glu: bool):
        super().__init__()
        self.layers = nn.ModuleList(ConvNeXtBlock(width, kernel_size=kernel_size, mult=mult, glu=glu) for _ in range(blocks))
        self.downsample = WNConv1d(width, width_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.downsample(x)


class ConvNeXtEncoder(nn.Module):
    """(B, in_channels, T) to (B, out_channels, about T / prod(strides)).

    Args:
        channels: width of the first stage; the input of stage i has `c_mults[i - 1]` times as much.
        c_mults, strides, num_blocks: of each stage: width of its output, shortening, and number of blocks.
        kernel_size, mult, glu: of the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int,
        c_mults: Sequence[int],
        strides: Sequence[int],
        num_blocks: Sequence[int],
        kernel_size: int = 7,
        mult: int = 4,
        glu: bool = False,
    ):
        super().__init__()
        widths = [channels * factor for factor in (1, *c_mults)]
        self.proj_in = WNConv1d(in_channels, widths[0], 7, padding=3)
        stages = zip(widths, widths[1:], strides, num_blocks, strict=False)
        self.layers = nn.Sequential(
            *(ConvNeXtStage(*stage, kernel_size=kernel_size, mult=mult, glu=glu) for stage in stages),
            WNConv1d(widths[-1], out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.proj_in(x))


def min_length(strides: Sequence[int]) -> int:
    """The shortest input of a `ConvNeXtEncoder` with these strides."""
    length = 1
    for stride in reversed(strides):
        length = max((length + 1) * stride - 2 * math.ceil(stride / 2), 1)
    return length
