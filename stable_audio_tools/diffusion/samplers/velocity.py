"""Samplers that follow the trajectory in t, dx/dt = rate * output: along the straight path of a flow, along the circle of v."""

from __future__ import annotations

from torch import Tensor

from ..objectives import Objective
from .base import Callback, Field, Generators, steps


def euler(
    field: Field, x: Tensor, ts: Tensor, *, objective: Objective, generator: Generators = None, callback: Callback | None = None
) -> Tensor:
    """First order, one evaluation a step; exact where trajectories are straight."""
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        prediction = at(x, t, index)
        x = prediction.x0 if after == 0 else x + (after - t) * objective.rate * prediction.output
    return x


def heun(
    field: Field, x: Tensor, ts: Tensor, *, objective: Objective, generator: Generators = None, callback: Callback | None = None
) -> Tensor:
    """Second order: the mean of the velocities at both ends of a step, two evaluations. arXiv:2206.00364, algorithm 1.

    The step to t = 0 denoises, so the model is never asked about clean data; the order stays two.
    """
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        prediction = at(x, t, index)
        if after == 0:
            x = prediction.x0
        else:
            h = (after - t) * objective.rate
            velocity = at(x + h * prediction.output, after).output
            x = x + h / 2 * (prediction.output + velocity)
    return x


def rk4(
    field: Field, x: Tensor, ts: Tensor, *, objective: Objective, generator: Generators = None, callback: Callback | None = None
) -> Tensor:
    """The classic fourth-order Runge-Kutta method, four evaluations a step; the last one of the last step is at t = 0."""
    at, path = steps(field, ts, callback)
    for index, t, after in path:
        middle, h = t + (after - t) / 2, (after - t) * objective.rate
        k1 = at(x, t, index).output
        k2 = at(x + h / 2 * k1, middle).output
        k3 = at(x + h / 2 * k2, middle).output
        k4 = at(x + h * k3, after).output
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
