"""Samplers for the straight path of rectified flow, dx/dt = v: x_t = (1 - t) x0 + t noise."""

from __future__ import annotations

import math

from torch import Tensor

from .base import Callback, Field, Generators, noise_like, steps


def euler(field: Field, x: Tensor, ts: Tensor, *, generator: Generators = None, callback: Callback | None = None) -> Tensor:
    """First order, one evaluation a step; exact where trajectories are straight."""
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        prediction = at(x, t, index)
        x = prediction.x0 if after == 0 else x + (after - t) * prediction.output
    return x


def heun(field: Field, x: Tensor, ts: Tensor, *, generator: Generators = None, callback: Callback | None = None) -> Tensor:
    """Second order: the mean of the velocities at both ends of a step, two evaluations. arXiv:2206.00364, algorithm 1.

    The step to t = 0 is Euler's, so the model is never asked about clean data; the order stays two.
    """
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        prediction = at(x, t, index)
        if after == 0:
            x = prediction.x0
        else:
            velocity = at(x + (after - t) * prediction.output, after).output
            x = x + (after - t) / 2 * (prediction.output + velocity)
    return x


def rk4(field: Field, x: Tensor, ts: Tensor, *, generator: Generators = None, callback: Callback | None = None) -> Tensor:
    """The classic fourth-order Runge-Kutta method, four evaluations a step; the last one of the last step is at t = 0."""
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        prediction = at(x, t, index)
        h, k1 = after - t, prediction.output
        k2 = at(x + h / 2 * k1, t + h / 2).output
        k3 = at(x + h / 2 * k2, t + h / 2).output
        k4 = at(x + h * k3, after).output
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def dpmpp(field: Field, x: Tensor, ts: Tensor, *, generator: Generators = None, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M) in logSNR, one evaluation a step: second order from the last step's prediction.

    Lu et al. 2022, arXiv:2211.01095, algorithm 2, with alpha = 1 - t and sigma = t.
    """
    at, path = steps(field, ts, callback)
    last_x0, last_h = None, math.inf
    for index, t, after in path:
        x0 = at(x, t, index).x0
        h = _logsnr(after) - _logsnr(t)
        # h is infinite in a step from t = 1 or to t = 0: no earlier prediction is then near enough to extrapolate from.
        extrapolation = h / (2 * last_h) if last_x0 is not None and math.isfinite(h) else 0.0
        ahead = x0 if last_x0 is None else x0 + extrapolation * (x0 - last_x0)
        x = after / t * x - (1 - after) * math.expm1(-h) * ahead
        last_x0, last_h = x0, h
    return x


def pingpong(field: Field, x: Tensor, ts: Tensor, *, generator: Generators = None, callback: Callback | None = None) -> Tensor:
    """Denoise fully, then add fresh noise for the next level: multistep consistency sampling. arXiv:2303.01469, algorithm 1."""
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        x0 = at(x, t, index).x0
        x = x0 if after == 0 else (1 - after) * x0 + after * noise_like(x, generator)
    return x


def _logsnr(t: float) -> float:
    if t <= 0 or t >= 1:
        return math.inf if t <= 0 else -math.inf
    return math.log((1 - t) / t)
