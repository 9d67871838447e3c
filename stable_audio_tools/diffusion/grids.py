"""Inference-time noise levels: from where sampling starts down to exactly 0.

`schedule` is the only road from a number of steps to a grid; demos and generation both take it. Grids are float64 on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError

from .objectives import Objective
from .timesteps import DistributionShift

LOGSNR_START, LOGSNR_END = -6.0, 2.0  # upstream's


def schedule(objective: Objective, steps: int, *, length: int, shift: DistributionShift | None = None, sigma_max: float = 1.0) -> Tensor:
    """Noise levels of a sampling run.

    A model trained with a distribution shift is sampled where it was trained: evenly, then shifted. One without is sampled on
    its objective's own grid: evenly in logSNR for a flow, evenly in t for v.

    Args:
        steps: how many; the grid has one level more.
        length: latent frames, for the shift.
        shift: the model's own.
        sigma_max: noise level to start from, 1 for pure noise, less to vary existing audio.

    Returns:
        (steps + 1,) strictly decreasing, first exactly `sigma_max`, last exactly 0.

    Raises:
        ValueError: no steps, or a start outside (0, 1].
        ConfigError: the shift has no levels for this length or start.
    """
    if shift is None and objective.even_in_logsnr:
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
