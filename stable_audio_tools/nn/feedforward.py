"""The networks of a transformer block beside attention: gated feed-forward, and convolution over tokens.

B batch, N tokens, D width. Masks are (B, N) bool, True = real: no real token sees a masked one.
"""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .norms import LayerNorm, NormKwargs

CONFORMER_KERNEL = 17


class FeedForwardKwargs(TypedDict, total=False):
    """Options of `FeedForward`."""

    mult: float
    no_bias: bool
    glu: bool
    use_conv: bool
    conv_kernel_size: int
    zero_init_output: bool


class TokenConv1d(nn.Conv1d):
    """A convolution along the tokens of (B, N, D); one of kernel size 1 is a linear layer with a convolution's weight."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1,):
            return F.linear(x, self.weight[..., 0], self.bias)
        return super().forward(x.mT).mT


class GLU(nn.Module):
    """A linear layer gated by the SiLU of another (SwiGLU). arXiv:2002.05202."""

    def __init__(self, dim: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.silu(gate)


class FeedForward(nn.Module):
    """The token-wise network of a block.

    Args:
        mult: inner width as a multiple of `dim`.
        no_bias: no biases, except in the gate, which always has them.
        glu: gated, else SiLU.
        use_conv: the output layer, and the input layer unless gated, is a convolution over tokens.
        conv_kernel_size: odd.
    """

    def __init__(
        self,
        dim: int,
        *,
        mult: float = 4,
        no_bias: bool = False,
        glu: bool = True,
        use_conv: bool = False,
        conv_kernel_size: int = 3,
        zero_init_output: bool = True,
    ):
        super().__init__()
        inner, bias = int(dim * mult), not no_bias

        def layer(d_in: int, d_out: int) -> nn.Module:
            if use_conv:
                return TokenConv1d(d_in, d_out, conv_kernel_size, padding=conv_kernel_size // 2, bias=bias)
            return nn.Linear(d_in, d_out, bias=bias)

        # The holes keep the indices of published checkpoints.
        first: nn.Module = GLU(dim, inner) if glu else nn.Sequential(nn.Identity(), layer(dim, inner), nn.Identity(), nn.SiLU())
        last = layer(inner, dim)
        self.ff = nn.Sequential(first, nn.Identity(), last, nn.Identity())
        self.use_conv = use_conv
        if zero_init_output:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None or not self.use_conv:
            return self.ff(x)
        return self.ff[2](zero_masked(self.ff[0](zero_masked(x, mask)), mask))


class ConformerModule(nn.Module):
    """Gated convolution over 17 tokens, after the Conformer's module (arXiv:2005.08100) with a layer norm for its batch norm."""

    def __init__(self, dim: int, *, norm_kwargs: NormKwargs | None = None, zero_init_output: bool = False):
        super().__init__()
        norm_kwargs = norm_kwargs or {}
        self.in_norm = LayerNorm(dim, **norm_kwargs)
        self.pointwise_conv = TokenConv1d(dim, dim, 1, bias=False)
        self.glu = GLU(dim, dim)
        self.depthwise_conv = TokenConv1d(dim, dim, CONFORMER_KERNEL, groups=dim, padding=CONFORMER_KERNEL // 2, bias=False)
        self.mid_norm = LayerNorm(dim, **norm_kwargs)
        self.pointwise_conv_2 = TokenConv1d(dim, dim, 1, bias=False)
        if zero_init_output:
            nn.init.zeros_(self.pointwise_conv_2.weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.glu(self.pointwise_conv(self.in_norm(x)))
        x = self.depthwise_conv(x if mask is None else zero_masked(x, mask))
        return self.pointwise_conv_2(F.silu(self.mid_norm(x)))


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D) with zeros where the mask (B, N) is False."""
    return x.masked_fill(~mask[..., None], 0)


def two_layers(dim: int, dim_out: int, *, bias: bool = False) -> nn.Sequential:
    """A network from vectors of width `dim` to width `dim_out`, as published models bring conditions to their own width."""
    return nn.Sequential(nn.Linear(dim, dim_out, bias=bias), nn.SiLU(), nn.Linear(dim_out, dim_out, bias=bias))
