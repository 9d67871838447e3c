"""Inference-time noise levels: from where sampling starts down to exactly 0.

`schedule` is the only road from a number of steps to a grid; demos and generation both take it. Grids are float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem

from .objectives import Objective
from .timesteps import DistributionShift

LOGSNR_START, LOGSNR_END = -6.0, 2.0  # upstream's


@dataclass(frozen=True)
class Ratios:
    """Noise levels as ratios sigma / alpha of noise to data, for samplers that step in them; of `exp(ramp ** rho)` shape.

    sigma_min, sigma_max: the last ratio above 0, and the first. rho: above 1, more of the steps are near sigma_min.
    named: they were asked for, and go before what a model's distribution shift leads to.
    """

    sigma_min: float = 0.01
    sigma_max: float = 100.0
    rho: float = 1.0
    named: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or not self.rho > 0:
            message = f"sigma_min is {self.sigma_min:g}, sigma_max {self.sigma_max:g}, rho {self.rho:g}"
            raise ConfigError([Problem((), message, "sigma_min must be above 0 and below sigma_max, and rho above 0")], source="sampler")


def schedule(
    objective: Objective,
    steps: int,
    *,
    length: int,
    shift: DistributionShift | None = None,
    sigma_max: float = 1.0,
    ratios: Ratios | None = None,
) -> Tensor:
    """Noise levels of a sampling run.

    A model trained with a distribution shift is sampled where it was trained: evenly, then shifted. One without is sampled on
    its objective's own grid: evenly in logSNR for a flow, evenly in t for v. A sampler that steps in ratios of noise to data
    starts where they are finite, and without a shift, or where its `ratios` were asked for, takes `ratio_grid`.

    Args:
        steps: how many; the grid has one level more.
        length: latent frames, for the shift.
        shift: the model's own.
        sigma_max: noise level to start from, 1 for pure noise, less to vary existing audio.
        ratios: the sampler's, if it steps in them.

    Returns:
        (steps + 1,) strictly decreasing, first exactly `sigma_max`, or the level of `ratios.sigma_max` where that is below,
        last exactly 0.

    Raises:
        ValueError: no steps, or a start outside (0, 1].
        ConfigError: the shift has no levels for this length or start.
    """
    if ratios is not None:
        _check(steps, sigma_max)
        if shift is None or ratios.named:
            return ratio_grid(objective, steps, ratios, sigma_max=sigma_max)
        sigma_max = min(sigma_max, objective.level(ratios.sigma_max))
    elif shift is None and objective.even_in_logsnr:
        return logsnr_grid(steps, sigma_max=sigma_max)
    return linear_grid(steps, sigma_max=sigma_max, shift=shift, length=length)


def linear_grid(steps: int, *, sigma_max: float = 1.0, shift: DistributionShift | None = None, length: int = 1) -> Tensor:
    """Even steps, then shifted.

    A grid that starts below 1 is the shifted grid's own lower part: even steps from the level that the shift takes to `sigma_max`.
    """
    _check(steps, sigma_max)
    if shift is None:
        ts = torch.linspace(sigma_max, 0, steps + 1, dtype=torch.float64)
    else:
        ts = shift.shift(torch.linspace(_unshift(shift, sigma_max, length), 0, steps + 1, dtype=torch.float64), length)
    if (ts[1:-1] >= sigma_max).any():
        raise ConfigError(f"the noise level to start from, {sigma_max}, is below all that the model's distribution shift leads to")
    return _pin_ends(ts, sigma_max)


def logsnr_grid(steps: int, *, sigma_max: float = 1.0) -> Tensor:
    """Even steps in logSNR = log((1 - t) / t), from LOGSNR_START or the logSNR of `sigma_max` to LOGSNR_END, with both ends pinned."""
    _check(steps, sigma_max)
    start = LOGSNR_START if sigma_max == 1 else math.log((1 - sigma_max) / sigma_max)
    # A start that is itself near or beyond LOGSNR_END takes the end along, so the levels still fall; chosen: by one.
    ts = torch.sigmoid(-torch.linspace(start, max(LOGSNR_END, start + 1), steps + 1, dtype=torch.float64))
    return _pin_ends(ts, sigma_max)


def ratio_grid(objective: Objective, steps: int, ratios: Ratios, *, sigma_max: float = 1.0) -> Tensor:
    """Ratios sigma / alpha polynomial in their logarithm, even for rho 1, and a step to 0.

    As in Karras et al. 2022, arXiv:2206.00364, section 3, with the logarithm for the root.
    """
    _check(steps, sigma_max)
    first = min(sigma_max, objective.level(ratios.sigma_max))
    start = math.log(objective.ratio(first))
    # A start near or below sigma_min takes the end along, so the levels still fall; chosen: by one.
    end = min(math.log(ratios.sigma_min), start - 1)
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** ratios.rho
    levels = [objective.level(math.exp(end + (start - end) * each)) for each in ramp.tolist()]
    return torch.tensor([first, *levels[1:], 0.0], dtype=torch.float64)


def _check(steps: int, sigma_max: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < sigma_max <= 1:
        raise ValueError(f"the noise level to start from must be above 0 and at most 1, got {sigma_max}")


def _pin_ends(ts: Tensor, sigma_max: float) -> Tensor:
    ts[0], ts[-1] = sigma_max, 0.0
    return ts


def _unshift(shift: DistributionShift, level: float, length: int) -> float:
    """The t that `shift` takes to `level`, by bisection, since any monotone map may be a shift."""
    low, high = 0.0, 1.0
    for _ in range(60 if level < 1 else 0):
        middle = (low + high) / 2
        below = float(shift.shift(torch.tensor(middle, dtype=torch.float64), length)) < level
        low, high = (middle, high) if below else (low, middle)
    return high
