"""DPM-Solver with steps of its own choice: a fixed budget of evaluations, or as many as a tolerance asks for.

Lu et al. 2022, arXiv:2206.00927. States are y = x / alpha = data + r * noise, r = sigma / alpha, and steps are of h = -log r, over
which the predicted noise is expanded. Both go from ts[0] to the last level above 0, without noise of their own, then denoise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives import Objective, expand
from .base import Callback, Field, Generators, Step
from .ratios import enter

SAFETY = 0.81
"""A step is kept if it could have been this share of the step proposed after it; k-diffusion's."""

SMALLEST_STEP = 1e-6
"""A step in log r at which an adaptive solver gives up; chosen: a path of 10 would need 10 million."""


@dataclass(frozen=True)
class _Eps:
    """The noise predicted at y (B, C, T) and log ratios (B,) of each item, with the clean data beside it.

    dtype: of x, which the field is asked about.
    """

    field: Field
    objective: Objective
    dtype: torch.dtype

    def read(self, y: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noise, x, x0)."""
        t = torch.tensor([self.objective.level(r) for r in log_ratio.exp().tolist()], dtype=torch.float64)
        x = (_factor(self.objective.alpha_sigma(t)[0], y) * y).to(self.dtype)
        x0 = self.field(x, t.to(y.dtype).to(y.device)).x0
        return (y - x0) / _factor(log_ratio.exp(), y), x, x0

    def __call__(self, y: Tensor, log_ratio: Tensor) -> Tensor:
        return self.read(y, log_ratio)[0]


def k_dpm_fast(
    field: Field, x: Tensor, ts: Tensor, *, objective: Objective, generator: Generators = None, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver-fast: as many evaluations as `ts` has steps, in steps of third order and what is left. Section 3.4.

    Of the levels, the first and the last one above 0 count; between them steps are even in log r.
    """
    eps, y, done = _Eps(field, objective, x.dtype), enter(objective, x, ts), 0
    start, end = _ends(objective, ts)
    orders = _orders(_steps_above_zero(ts))
    path = torch.linspace(start, end, len(orders) + 1, dtype=torch.float64)
    for order, here, there in zip(orders, path[:-1], path[1:], strict=True):
        here, there = here.expand(len(x)), there.expand(len(x))
        noise, state, x0 = eps.read(y, here)
        if callback is not None:
            callback(Step(done, objective.level(math.exp(float(here[0]))), state, x0))
        y = _ORDERS[order](eps, y, noise, here, there)
        done += order
    return _finish(eps, y, ts, callback)


def k_dpm_adaptive(
    field: Field,
    x: Tensor,
    ts: Tensor,
    *,
    objective: Objective,
    generator: Generators = None,
    callback: Callback | None = None,
    rtol: float = 0.01,
    atol: float = 0.01,
) -> Tensor:
    """DPM-Solver-23: third-order steps whose length keeps their difference to second order within a tolerance. Appendix C.

    Each item has steps of its own, so a clip is the same in every batch; the batch takes as many as its longest item.
    Of the levels, the first and the last one above 0 count.

    Args:
        rtol, atol: largest difference of a step, relative to the state and in all, as a mean square over the item.

    Raises:
        RuntimeError: no step is short enough, as of a model whose predictions are not finite.
    """
    eps, y = _Eps(field, objective, x.dtype), enter(objective, x, ts)
    start, end = _ends(objective, ts)
    before = y
    here = torch.full((len(x),), start, dtype=torch.float64)
    h = torch.full_like(here, 0.05)  # the paper's first step
    while bool((running := here > end + 1e-5).any()):
        there = torch.where(running, (here - h).clamp(min=end), here - h)
        noise, state, x0 = eps.read(y, here)
        if callback is not None:
            slowest = float(here.max())
            done = int((start - slowest) / (start - end) * _steps_above_zero(ts))
            callback(Step(done, objective.level(math.exp(slowest)), state, x0))
        low, high = _second_and_third(eps, y, noise, here, there)
        error = _error(low, high, before, rtol, atol)
        factor = 1 + torch.atan((error + 1e-8) ** (-1 / 3) - 1)
        accepted = running & (factor >= SAFETY)
        y, before = _choose(accepted, high, y), _choose(accepted, low, before)
        here, h = torch.where(accepted, there, here), torch.where(running, h * factor, h)
        if not bool((h > SMALLEST_STEP).all()):
            raise RuntimeError("k-dpm-adaptive finds no step within its tolerance: raise rtol or atol, or use another sampler")
    return _finish(eps, y, ts, callback)


def _orders(budget: int) -> list[int]:
    """Of the steps, which add up to the evaluations there are."""
    whole, left = divmod(budget, 3)
    if left:
        return [3] * whole + [left]
    return [3] * (whole - 1) + [2, 1] if whole else []


def _ends(objective: Objective, ts: Tensor) -> tuple[float, float]:
    """Log ratios of the first level and of the last one above 0."""
    levels = ts.double().tolist()
    return math.log(objective.ratio(levels[0])), math.log(objective.ratio(levels[_steps_above_zero(ts)]))


def _steps_above_zero(ts: Tensor) -> int:
    return len(ts) - (2 if ts[-1] == 0 else 1)


def _finish(eps: _Eps, y: Tensor, ts: Tensor, callback: Callback | None) -> Tensor:
    """Denoise from the last level above 0, where the levels end at 0."""
    index = _steps_above_zero(ts)
    t = float(ts[index])
    if ts[-1] > 0:
        return (eps.objective.weights(t)[0] * y).to(eps.dtype)
    _, x, x0 = eps.read(y, torch.full((len(y),), math.log(eps.objective.ratio(t)), dtype=torch.float64))
    if callback is not None:
        callback(Step(index, t, x, x0))
    return x0


def _first(eps: _Eps, y: Tensor, noise: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Equation 3.7. `here` and `there` are log ratios (B,)."""
    return y - _factor(there.exp() * torch.expm1(here - there), y) * noise


def _second(eps: _Eps, y: Tensor, noise: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Algorithm 1."""
    middle = here + (there - here) / 2
    change = eps(_first(eps, y, noise, here, middle), middle) - noise
    return _first(eps, y, noise + change, here, there)


def _third(eps: _Eps, y: Tensor, noise: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Algorithm 2."""
    return _second_and_third(eps, y, noise, here, there)[1]


def _second_and_third(eps: _Eps, y: Tensor, noise: Tensor, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Both from the same evaluations, at one and two thirds of the step."""
    third, two_thirds = here + (there - here) / 3, here + (there - here) * (2 / 3)
    change = eps(_first(eps, y, noise, here, third), third) - noise
    low = _first(eps, y, noise + 1.5 * change, here, there)
    u = _first(eps, y, noise, here, two_thirds) - _linear(two_thirds, here - two_thirds, y) * 2 * change
    change = eps(u, two_thirds) - noise
    return low, _first(eps, y, noise, here, there) - _linear(there, here - there, y) * 1.5 * change


def _linear(there: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """What noise that grows from 0 to 1 over a step of h adds to y, (B, 1, 1)."""
    return _factor(there.exp() * (torch.expm1(h) / h - 1), y)


_ORDERS: dict[int, Callable[[_Eps, Tensor, Tensor, Tensor, Tensor], Tensor]] = {1: _first, 2: _second, 3: _third}


def _error(low: Tensor, high: Tensor, before: Tensor, rtol: float, atol: float) -> Tensor:
    """(B,) root mean square of each item's difference in units of its tolerance, float64 on the CPU."""
    tolerance = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
    return ((low - high) / tolerance).square().mean(dim=tuple(range(1, low.ndim))).sqrt().cpu().double()


def _choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(_factor(accepted, new).bool(), new, old)


def _factor(values: Tensor, y: Tensor) -> Tensor:
    """A number (B,) of each item, on the CPU, to multiply y with; not every device has float64."""
    return expand(values, y).to(y.device)
