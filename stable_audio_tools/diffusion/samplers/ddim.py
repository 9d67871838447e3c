"""DDIM for the variance-preserving path of the v objective."""

from __future__ import annotations

import math

from torch import Tensor

from .base import Callback, Field, Generators, noise_like, steps


def v_ddim(
    field: Field, x: Tensor, ts: Tensor, *, generator: Generators = None, callback: Callback | None = None, eta: float = 0.0
) -> Tensor:
    """Denoise, then go to the next level along the predicted noise. Song et al. 2020, arXiv:2010.02502, equations 12 and 16.

    Args:
        eta: share of fresh noise: 0 is deterministic, 1 has the variance of ancestral sampling.
    """
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        prediction = at(x, t, index)
        if after == 0:
            return prediction.x0
        alpha, sigma = _alpha_sigma(after)
        fresh = eta * _ancestral_std(t, after)
        x = alpha * prediction.x0 + math.sqrt(sigma**2 - fresh**2) * prediction.noise
        if fresh:
            x = x + fresh * noise_like(x, generator)
    return x


def _alpha_sigma(t: float) -> tuple[float, float]:
    return math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)


def _ancestral_std(t: float, after: float) -> float:
    """Standard deviation of x at `after` given x at t and the clean data, equation 16 with eta = 1."""
    (alpha, sigma), (alpha_after, sigma_after) = _alpha_sigma(t), _alpha_sigma(after)
    return sigma_after / sigma * math.sqrt(max(1 - (alpha / alpha_after) ** 2, 0.0))
