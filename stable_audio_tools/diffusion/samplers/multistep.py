"""DPM-Solver++ with several steps' predictions, in logSNR: one evaluation a step, as an ODE or with fresh noise.

Lu et al. 2022, arXiv:2211.01095. A step over h of logSNR holds the predicted clean data still, or extrapolates it from earlier
steps, and solves the rest exactly. `eta` scales the noise of the reverse SDE: 0 is the ODE, 1 the paper's SDE (appendix).
"""

from __future__ import annotations

import math

from torch import Tensor

from ..objectives import Objective
from .base import Callback, Field, Generators, noise_like, steps


def dpmpp_2m(
    field: Field,
    x: Tensor,
    ts: Tensor,
    *,
    objective: Objective,
    generator: Generators = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Second order: clean data is extrapolated to half a step ahead. Algorithm 2, and SDE-DPM-Solver++(2M)."""
    at, path = steps(field, ts, callback)
    last_x0, last_h = None, math.inf
    for index, t, after in path:
        x0 = at(x, t, index).x0
        h = objective.logsnr(after) - objective.logsnr(t)
        # h is infinite in a step from t = 1 or to t = 0: no earlier prediction is then near enough to extrapolate from.
        extrapolation = h / (2 * last_h) if last_x0 is not None and math.isfinite(h) else 0.0
        ahead = x0 if last_x0 is None else x0 + extrapolation * (x0 - last_x0)
        keep, gain, fresh = _step(objective, t, after, h, eta)
        x = keep * x + gain * ahead
        if fresh:
            x = x + fresh * noise_like(x, generator)
        last_x0, last_h = x0, h
    return x


def dpmpp_3m(
    field: Field,
    x: Tensor,
    ts: Tensor,
    *,
    objective: Objective,
    generator: Generators = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Third order: clean data follows the parabola through the last three predictions, integrated exactly."""
    at, path = steps(field, ts, callback)
    earlier: list[tuple[Tensor, float]] = []  # predictions, newest first, each with the step that followed it
    for index, t, after in path:
        x0 = at(x, t, index).x0
        h = objective.logsnr(after) - objective.logsnr(t)
        keep, gain, fresh = _step(objective, t, after, h, eta)
        x = keep * x + gain * x0
        if math.isfinite(h):
            if earlier:
                x = x + objective.weights(after)[0] * _curvature(x0, h, earlier, (1 + eta) * h)
            earlier = [(x0, h), *earlier][:2]
        else:
            earlier = []
        if fresh:
            x = x + fresh * noise_like(x, generator)
    return x


def _step(objective: Objective, t: float, after: float, h: float, eta: float) -> tuple[float, float, float]:
    """Weights of x, of the clean data and of fresh noise after a step of h in logSNR."""
    alpha, sigma = objective.weights(after)
    damped = eta * h if eta else 0.0  # h may be infinite
    keep = sigma / objective.weights(t)[1] * math.exp(-damped)
    return keep, -alpha * math.expm1(-h - damped), sigma * math.sqrt(-math.expm1(-2 * damped))


def _curvature(x0: Tensor, h: float, earlier: list[tuple[Tensor, float]], decay: float) -> Tensor:
    """What the change of clean data adds to a step, for alpha = 1.

    With u from 0 to 1 through the step, clean data is x0 + u d1 + u^2 d2; each power is integrated against
    decay * exp(-decay (1 - u)). d1 and d2 are those of the line or parabola through the predictions at hand.
    """
    linear = 1 + math.expm1(-decay) / decay
    x1, h1 = earlier[0]
    r1 = h1 / h
    d1 = (x0 - x1) / r1
    if len(earlier) == 1:
        return linear * d1
    x2, h2 = earlier[1]
    r2 = h2 / h
    d2 = (d1 - (x1 - x2) / r2) / (r1 + r2)
    return linear * (d1 + r1 * d2) + (1 - 2 * linear / decay) * d2
