"""Convolution blocks of the audio codecs and their discriminators: weight-normalised layers, Snake, residual units, upsamplers.

Parameter names and the indices inside the `Sequential`s are file format: published checkpoints name them.
B batch, C channels, T samples or frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .antialias import AntialiasedActivation
from .exact import at_least_single


class _WeightNorm(nn.Module):
    """Weight normalisation, w = g v / |v| with one norm per first index (arXiv:1602.07868), owned by the layer itself.

    torch's hook stores a computed tensor on the module, so a fresh one cannot be deep-copied; its parametrization renames the
    keys. Here `weight_g` and `weight_v` are plain parameters, and after `remove_weight_norm` there is one plain `weight`.
    Either spelling loads into either form, as both describe the same weight.
    """

    weight: Tensor
    weight_g: Tensor
    weight_v: Tensor

    def _own_weight_norm(self) -> None:
        weight = self.weight
        del self.weight
        self.weight_g = nn.Parameter(_norm(weight.detach()))
        self.weight_v = nn.Parameter(weight.detach())

    @property
    def folded(self) -> bool:
        """True once `remove_weight_norm` was called: the layer has a plain `weight`."""
        return "weight" in self._parameters

    def effective_weight(self) -> Tensor:
        """The weight the convolution uses."""
        return self.weight if self.folded else _fold(self.weight_v, self.weight_g)

    @torch.no_grad()
    def remove_weight_norm(self) -> None:
        """Replace `weight_g` and `weight_v` by the `weight` they stand for; the output does not change. Idempotent."""
        if self.folded:
            return
        weight = nn.Parameter(self.effective_weight(), requires_grad=self.weight_v.requires_grad)
        del self.weight_g, self.weight_v
        self.weight = weight

    @torch.no_grad()
    def restore_weight_norm(self) -> None:
        """The reverse of `remove_weight_norm`, to train on: g = |w|, v = w; the output does not change. Idempotent."""
        if not self.folded:
            return
        trained = self.weight.requires_grad
        self._own_weight_norm()
        self.weight_g.requires_grad_(trained)
        self.weight_v.requires_grad_(trained)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight, g, v = (prefix + name for name in ("weight", "weight_g", "weight_v"))
        if self.folded and g in state_dict and v in state_dict:
            state_dict[weight] = _fold(state_dict.pop(v), state_dict.pop(g))
        elif not self.folded and weight in state_dict:
            state_dict[v] = state_dict.pop(weight)
            state_dict[g] = _norm(state_dict[v])
        super()._load_from_state_dict(state_dict, prefix, *args)


def _norm(weight: Tensor) -> Tensor:
    return torch.norm_except_dim(weight, 2, 0)


def _fold(v: Tensor, g: Tensor) -> Tensor:
    return torch._weight_norm(v, g, 0)


class WNConv1d(_WeightNorm, nn.Conv1d):
    """`nn.Conv1d` under weight normalisation; same arguments."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._own_weight_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)


class WNConv2d(_WeightNorm, nn.Conv2d):
    """`nn.Conv2d` under weight normalisation; same arguments."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._own_weight_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)


class WNConvTranspose1d(_WeightNorm, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` under weight normalisation; same arguments, zero padding."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._own_weight_norm()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        sizes = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose1d(x, self.effective_weight(), self.bias, *sizes)  # type: ignore[arg-type]


class SnakeBeta(nn.Module):
    """Periodic activation x + sin^2(alpha x) / beta, per channel (arXiv:2006.08195; beta as in BigVGAN, arXiv:2206.04658).

    `alpha` and `beta` hold logarithms, so that both stay positive.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T), computed in at least float32, returned in the dtype of `x`."""
        alpha = at_least_single(self.alpha).exp()[:, None]
        inverse_beta = 1 / (at_least_single(self.beta).exp() + 1e-9)[:, None]
        return _snake(x, alpha, inverse_beta)


class Snake(nn.Module):
    """Periodic activation x + sin^2(alpha x) / alpha, per channel (arXiv:2006.08195), as in the Descript codec: `alpha` is no logarithm."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T), computed in at least float32, returned in the dtype of `x`."""
        alpha = at_least_single(self.alpha[0])
        return _snake(x, alpha, 1 / (alpha + 1e-9))


def _snake(x: Tensor, alpha: Tensor, inverse_beta: Tensor) -> Tensor:
    """x + sin^2(alpha x) * inverse_beta, for x (B, C, T) and factors (C, 1)."""
    if torch.compiler.is_compiling():  # fuses the formula by itself, and in torch 2.11 gets `_Snake`'s gradient wrong
        return (x + inverse_beta * torch.sin(x * alpha).square()).to(x.dtype)
    return _Snake.apply(x, alpha, inverse_beta)


class _Snake(torch.autograd.Function):
    """Keeps only its input for the backward pass: plain autograd would keep three tensors of that size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, inverse_beta: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, inverse_beta)
        return (x * alpha).sin_().square_().mul_(inverse_beta).add_(x).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grads
        x, alpha, inverse_beta = ctx.saved_tensors
        phase = x * alpha
        sine = phase.sin()
        slope = 2 * grad * sine * phase.cos()
        grad_x = torch.addcmul(grad, slope, alpha * inverse_beta).to(x.dtype)
        grad_alpha = (slope * x).sum((0, 2))[:, None] * inverse_beta
        grad_inverse_beta = (grad * sine.square()).sum((0, 2))[:, None]
        return grad_x, grad_alpha, grad_inverse_beta


def activation(channels: int, *, snake: bool, antialias: bool = False) -> nn.Module:
    """SnakeBeta or ELU, run at twice the rate when `antialias`."""
    module: nn.Module = SnakeBeta(channels) if snake else nn.ELU()
    return AntialiasedActivation(module) if antialias else module


class ResidualUnit(nn.Module):
    """x + conv1x1(act(conv7(act(x)))), the 7-tap convolution dilated. (B, C, T) -> (B, C, T).

    `checkpointing` recomputes the unit in the backward pass: about a quarter more work, a fraction of the memory.
    """

    def __init__(self, channels: int, *, dilation: int, snake: bool, checkpointing: bool = False):
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.Sequential(
            activation(channels, snake=snake),
            WNConv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            activation(channels, snake=snake),
            WNConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return x + checkpoint(self.layers, x, use_reentrant=False, preserve_rng_state=False)
        return x + self.layers(x)


def downsampler(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Strided convolution, kernel twice the stride. (B, C, T) -> (B, C', T / stride) where stride divides T."""
    return WNConv1d(in_channels, out_channels, 2 * stride, stride=stride, padding=-(-stride // 2))


def upsampler(in_channels: int, out_channels: int, stride: int, *, nearest: bool = False) -> nn.Module:
    """Transposed convolution, or `nearest` repetition and a convolution, which leaves fewer tonal artefacts.

    (B, C, T) -> (B, C', T * stride); the transposed form returns one sample less when the stride is odd.
    """
    if nearest:
        return nn.Sequential(_RepeatAndPad(stride), WNConv1d(in_channels, out_channels, 2 * stride, bias=False))
    return WNConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride, padding=-(-stride // 2))


class _RepeatAndPad(nn.Module):
    """Each sample `stride` times, and the zeros that keep the length under a convolution of 2 * stride taps (its "same" padding)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x.repeat_interleave(self.stride, dim=-1), (self.stride - 1, self.stride))
