"""How the squared errors of a denoiser count: by frame, by noise level, and against the size of what was to be predicted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossNormalization = Literal["none", "timestep", "sample", "sample_channel"]
VARIANCE_OVER: dict[str, tuple[int, ...]] = {"timestep": (1,), "sample": (1, 2), "sample_channel": (2,)}
"""Dimensions of (B, C, T)."""


def weighted_mean(value: Tensor, weight: Tensor | None = None, dim: tuple[int, ...] = (0, 1, 2), *, keepdim: bool = False) -> Tensor:
    """The mean of `value` (B, C, T) over `dim`; 0 where nothing counts.

    Args:
        weight: (B, 1, T) not negative, how much each frame counts; what is at a frame of weight 0 does not matter at all. None: the same.
    """
    if weight is None:
        return value.mean(dim, keepdim=keepdim)
    weight = weight.expand_as(value)
    total, count = (value * weight).where(weight > 0, 0).sum(dim, keepdim=keepdim), weight.sum(dim, keepdim=keepdim)
    return total / count.where(count > 0, 1)


def min_snr_weight(alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """Weights (B,) of squared errors of the velocity, min(alpha^2, gamma sigma^2). Hang et al. 2023, arXiv:2303.09556.

    The paper weighs the error of x0 by min(SNR, gamma), SNR = alpha^2 / sigma^2. Both objectives read x0 = denoised(x_t, 0, t) - sigma v,
    so an error of v is one of x0 divided by sigma, and its weight is sigma^2 min(SNR, gamma): min(SNR, gamma) / (SNR + 1) on the circle,
    as in the paper, and min((1 - t)^2, gamma t^2) on the straight path. Pure noise has weight 0.

    Args:
        alpha, sigma: (B,) of the objective at the examples' noise levels.
    """
    return torch.minimum(alpha.square(), gamma * sigma.square())


@torch.no_grad()
def target_variance(target: Tensor, weight: Tensor | None, kind: LossNormalization, eps: float) -> Tensor:
    """What squared errors are divided by, so that loud passages do not outweigh quiet ones. As in Stable Audio 3.

    Args:
        target: (B, C, T) the velocity.
        weight: (B, 1, T), as in `weighted_mean`; None: all frames count.
        kind: the variance of the target at each frame over channels ("timestep", (B, 1, T)), in each example over channels and frames
            ("sample", (B, 1, 1)), or in each channel of an example over frames ("sample_channel", (B, C, 1)).
        eps: added to it.
    """
    dim, target = VARIANCE_OVER[kind], target.float()
    mean = weighted_mean(target, weight, dim, keepdim=True)
    return weighted_mean((target - mean).square(), weight, dim, keepdim=True) + eps
