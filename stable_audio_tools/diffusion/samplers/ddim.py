"""Samplers that denoise fully and noise again, with the predicted noise, with fresh noise, or with a share of both."""

from __future__ import annotations

import math

from torch import Tensor

from ..objectives import Objective
from .base import Callback, Field, Generators, noise_like, steps


def ddim(
    field: Field,
    x: Tensor,
    ts: Tensor,
    *,
    objective: Objective,
    generator: Generators = None,
    callback: Callback | None = None,
    eta: float = 0.0,
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
        alpha, sigma = objective.weights(after)
        fresh = eta * _ancestral_std(objective, t, after)
        x = alpha * prediction.x0 + math.sqrt(sigma**2 - fresh**2) * prediction.noise
        if fresh:
            x = x + fresh * noise_like(x, generator)
    return x


def pingpong(
    field: Field, x: Tensor, ts: Tensor, *, objective: Objective, generator: Generators = None, callback: Callback | None = None
) -> Tensor:
    """Denoise fully, then add fresh noise for the next level: multistep consistency sampling. arXiv:2303.01469, algorithm 1."""
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        x = at(x, t, index).x0
        if after:
            alpha, sigma = objective.weights(after)
            x = alpha * x + sigma * noise_like(x, generator)
    return x


def _ancestral_std(objective: Objective, t: float, after: float) -> float:
    """Standard deviation of x at `after` given x at t and the clean data, equation 16 with eta = 1, for any alpha and sigma."""
    (alpha, sigma), (alpha_after, sigma_after) = objective.weights(t), objective.weights(after)
    return sigma_after / sigma * math.sqrt(max(sigma**2 - (alpha / alpha_after * sigma_after) ** 2, 0.0))
