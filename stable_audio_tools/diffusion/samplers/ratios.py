"""Samplers that step in ratios r = sigma / alpha of noise to data, where the state is y = x / alpha = data + r * noise.

There dy/dr = (y - x0) / r for every objective. Karras et al. 2022, arXiv:2206.00364; they start where r is finite, below t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..objectives import Objective
from .base import At, Callback, Field, Generators, noise_like, steps


def enter(objective: Objective, x: Tensor, ts: Tensor) -> Tensor:
    """y of the x that a sampler starts from, in at least float32, since ratios go beyond what half precision holds.

    Raises:
        ValueError: the ratio is infinite there.
    """
    if (start := float(ts[0])) >= 1:
        raise ValueError("this sampler starts below t = 1, where there is some data in the noise; see `ChosenSampler.schedule`")
    return x.to(torch.promote_types(x.dtype, torch.float32)) / objective.weights(start)[0]


class RatioField:
    """The field at states y and levels t. dtype: of x, which the model is asked about."""

    def __init__(self, at: At, objective: Objective, dtype: torch.dtype):
        self.at, self.objective, self.dtype = at, objective, dtype

    def leave(self, y: Tensor, t: float) -> Tensor:
        """x of y."""
        return (self.objective.weights(t)[0] * y).to(self.dtype)

    def x0(self, y: Tensor, t: float, step: int | None = None) -> Tensor:
        return self.at(self.leave(y, t), t, step).x0

    def slope(self, y: Tensor, t: float, step: int | None = None) -> Tensor:
        """dy/dr, which is the predicted noise."""
        return (y - self.x0(y, t, step)) / self.objective.ratio(t)


def k_heun(
    field: Field, x: Tensor, ts: Tensor, *, objective: Objective, generator: Generators = None, callback: Callback | None = None
) -> Tensor:
    """Second order: the mean of the slopes at both ends of a step, two evaluations. arXiv:2206.00364, algorithm 1."""
    at, path = steps(field, ts, callback)
    of, ratio = RatioField(at, objective, x.dtype), objective.ratio
    y = enter(objective, x, ts)
    for index, t, after in path:
        if after == 0:
            return of.x0(y, t, index)
        h, slope = ratio(after) - ratio(t), of.slope(y, t, index)
        y = y + h / 2 * (slope + of.slope(y + h * slope, after))
    return of.leave(y, float(ts[-1]))


def k_dpm_2(
    field: Field, x: Tensor, ts: Tensor, *, objective: Objective, generator: Generators = None, callback: Callback | None = None
) -> Tensor:
    """Second order: the slope at the geometric middle of a step, two evaluations. DPM-Solver-2, arXiv:2206.00927, algorithm 1."""
    at, path = steps(field, ts, callback)
    of, ratio = RatioField(at, objective, x.dtype), objective.ratio
    y = enter(objective, x, ts)
    for index, t, after in path:
        if after == 0:
            return of.x0(y, t, index)
        middle, slope = math.sqrt(ratio(t) * ratio(after)), of.slope(y, t, index)
        ahead = of.slope(y + (middle - ratio(t)) * slope, objective.level(middle))
        y = y + (ratio(after) - ratio(t)) * ahead
    return of.leave(y, float(ts[-1]))


def k_lms(
    field: Field,
    x: Tensor,
    ts: Tensor,
    *,
    objective: Objective,
    generator: Generators = None,
    callback: Callback | None = None,
    order: int = 4,
) -> Tensor:
    """Linear multistep (Adams-Bashforth) of the given order, one evaluation a step.

    Args:
        order: how many slopes the polynomial goes through, 1 to 4.
    """
    at, path = steps(field, ts, callback)
    of, ratio = RatioField(at, objective, x.dtype), objective.ratio
    y, known = enter(objective, x, ts), list[tuple[float, Tensor]]()
    for index, t, after in path:
        known = [(ratio(t), of.slope(y, t, index)), *known][:order]
        weights = _adams_bashforth([r for r, _ in known], ratio(after))
        y = y + sum(weight * slope for weight, (_, slope) in zip(weights, known, strict=True))
    return of.leave(y, float(ts[-1]))


def k_dpmpp_2s_ancestral(
    field: Field,
    x: Tensor,
    ts: Tensor,
    *,
    objective: Objective,
    generator: Generators = None,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S), arXiv:2211.01095, algorithm 1, to below the next level, and fresh noise up to it; two evaluations a step.

    Args:
        eta: share of fresh noise: 0 is deterministic, 1 has the variance of ancestral sampling.
    """
    at, path = steps(field, ts, callback)
    of, ratio = RatioField(at, objective, x.dtype), objective.ratio
    y = enter(objective, x, ts)
    for index, t, after in path:
        x0 = of.x0(y, t, index)
        if after == 0:
            return x0
        here, there = ratio(t), ratio(after)
        fresh = eta * there * math.sqrt(1 - (there / here) ** 2)
        below = math.sqrt(there**2 - fresh**2)
        middle = math.sqrt(here * below)
        ahead = of.x0(x0 + middle / here * (y - x0), objective.level(middle))
        y = ahead + below / here * (y - ahead)
        if fresh:
            y = y + fresh * noise_like(y, generator)
    return of.leave(y, float(ts[-1]))


def _adams_bashforth(nodes: Sequence[float], end: float) -> list[float]:
    """Integrals from nodes[0] to `end` of the Lagrange polynomials of up to four nodes."""
    half, centre = (end - nodes[0]) / 2, (end + nodes[0]) / 2
    gauss = [centre - half / math.sqrt(3), centre + half / math.sqrt(3)]  # exact for polynomials up to the third degree

    def lagrange(j: int, r: float) -> float:
        return math.prod((r - other) / (nodes[j] - other) for k, other in enumerate(nodes) if k != j)

    return [half * sum(lagrange(j, r) for r in gauss) for j in range(len(nodes))]
