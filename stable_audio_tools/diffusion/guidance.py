"""Classifier-free guidance as functions of tensors: combine a conditional and an unconditional prediction, per item.

Predictions are (B, C, T) velocities; what "unconditional" means is the model's affair, and may be a negative prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, 1.0)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional). Ho & Salimans 2022, arXiv:2207.12598, equation 6."""
    return unconditional + scale * (conditional - unconditional)


def rescale(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """Bring the guided prediction's standard deviation back to the conditional one's, by a share `phi` of the way.

    Lin et al. 2023, arXiv:2305.08891, equations 15 and 16; taken over channels, frame by frame, as published models have it.
    """
    matched = guided * (conditional.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True))
    return phi * matched + (1 - phi) * guided


def in_interval(sigma: Tensor, interval: Interval) -> Tensor:
    """(B,) bool: the items whose noise level lies in the closed interval of guidance. arXiv:2404.07724."""
    low, high = interval
    return (sigma >= low) & (sigma <= high)


def where_items(chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Items of `a` where `chosen` (B,) is True, else of `b`; either may have a batch of 1."""
    return torch.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def guided(
    conditional: Tensor, unconditional: Tensor, sigma: Tensor, *, scale: float, phi: float = 0.0, interval: Interval = EVERYWHERE
) -> Tensor:
    """The guided prediction of the items inside the interval, and the conditional one of the others.

    Args:
        conditional, unconditional: (B, C, T).
        sigma: (B,) noise levels.
        scale: 1 is the conditional prediction.
        phi: share of the rescaling, 0 to 1.
    """
    out = guide(conditional, unconditional, scale)
    if phi:
        out = rescale(out, conditional, phi)
    return out if interval == EVERYWHERE else where_items(in_interval(sigma, interval), out, conditional)
