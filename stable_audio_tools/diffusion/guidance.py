"""Classifier-free guidance as functions of tensors: combine a conditional and an unconditional prediction, per item.

Predictions are (B, C, T) velocities; what "unconditional" means is the model's affair, and may be a negative prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem

Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Guidance:
    """How generation guides; named as the arguments of generation and of a model are.

    cfg_scale: strength, 1 is none. arXiv:2207.12598.
    scale_phi: share, 0 to 1, of bringing the guided prediction back to the conditional one's standard deviation; default the
        network's own, which is 0 but for adp_cfg_1d. arXiv:2305.08891.
    cfg_interval: noise levels (sigma) between which guidance acts. arXiv:2404.07724.
    apg_scale: share, 0 to 1, of taking from the guidance what is parallel to the prediction, and oversaturates. arXiv:2410.02416.
    apg_momentum: share of the evaluations before that is added to each guidance, negative to damp. arXiv:2410.02416.
    cfg_norm_threshold: largest Euclidean norm of an item's guidance, on the scale of clean latents; 0 is none. arXiv:2410.02416.
    batch_cfg: both predictions in one batch: faster, in twice the memory.
    """

    cfg_scale: float = 1.0
    scale_phi: float | None = None
    cfg_interval: Interval = EVERYWHERE
    apg_scale: float = 0.0
    apg_momentum: float = 0.0
    cfg_norm_threshold: float = 0.0
    batch_cfg: bool = True

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ConfigError(problems, source="guidance")

    def for_run(self) -> dict[str, Any]:
        """The model's keyword arguments for one sampling run, whose momentum starts at rest."""
        low, high = self.cfg_interval  # a list, where it was read from JSON, would not be EVERYWHERE
        return {
            "cfg_scale": self.cfg_scale,
            "scale_phi": self.scale_phi,
            "cfg_interval": (low, high),
            "apg_scale": self.apg_scale,
            "cfg_momentum": Momentum(self.apg_momentum) if self.apg_momentum else None,
            "cfg_norm_threshold": self.cfg_norm_threshold,
            "batch_cfg": self.batch_cfg,
        }

    def _problems(self) -> Iterator[Problem]:
        if not math.isfinite(self.cfg_scale):
            yield Problem((), f"cfg_scale is {self.cfg_scale}", "give a finite number; 1 is no guidance")
        for name in ("scale_phi", "apg_scale"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                yield Problem((), f"{name} is {share}", "give a share from 0, which is none, to 1")
        if not -1 < self.apg_momentum < 1:
            yield Problem((), f"apg_momentum is {self.apg_momentum}", "give a share between -1 and 1, such as -0.5; 0 is none")
        if not 0 <= self.cfg_norm_threshold < math.inf:
            yield Problem((), f"cfg_norm_threshold is {self.cfg_norm_threshold}", "give a norm above 0; 0 is no limit")
        low, high = self.cfg_interval
        if not low <= high:
            yield Problem((), f"cfg_interval is {low:g} to {high:g}, which holds no noise level", "give the lower end first")


class Momentum:
    """What guidance remembers of the evaluations before, in one sampling run. arXiv:2410.02416, algorithm 1.

    The paper sums differences of clean data, difference + beta * (the sum before). Those of velocities are 1 / -sigma of them.
    """

    def __init__(self, beta: float):
        self.beta = beta
        self._before: tuple[Tensor, Tensor] | None = None

    def add(self, difference: Tensor, sigma: Tensor) -> Tensor:
        """The sum with this difference of velocities (B, C, T) at sigma (B,), for the velocity at sigma."""
        if self._before is not None:
            total, sigma_before = self._before
            # At sigma 0, where the last stage of rk4 is, the velocity has no part in clean data.
            ratio = torch.where(sigma > 0, sigma_before / sigma, 0.0)
            difference = difference + self.beta * _per_item(ratio, total) * total
        self._before = difference, sigma
        return difference


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional). Ho & Salimans 2022, arXiv:2207.12598, equation 6."""
    return unconditional + scale * (conditional - unconditional)


def rescale(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """Bring the guided prediction's standard deviation back to the conditional one's, by a share `phi` of the way.

    Lin et al. 2023, arXiv:2305.08891, equations 15 and 16; taken over channels, frame by frame, as published models have it. One
    channel has no deviation of its own, so there it is taken over time, too.
    """
    dims = (1,) if conditional.shape[1] > 1 else (1, 2)
    wanted, present = (each.std(dim=dims, keepdim=True) for each in (conditional, guided))
    matched = guided * (wanted / present.clamp(min=torch.finfo(present.dtype).tiny))
    return phi * matched + (1 - phi) * guided


def shaped(
    conditional: Tensor,
    unconditional: Tensor,
    x0: Tensor,
    sigma: Tensor,
    *,
    apg_scale: float = 0.0,
    norm_threshold: float = 0.0,
    momentum: Momentum | None = None,
) -> Tensor:
    """The unconditional prediction that is left when the difference to the conditional one is shaped. arXiv:2410.02416.

    The paper shapes the difference of clean data. That of velocities is 1 / -sigma of it, so it has the same projections.

    Args:
        conditional, unconditional: (B, C, T) velocities.
        x0: (B, C, T) clean data that the conditional one implies.
        sigma: (B,) noise levels.
        apg_scale: share, 0 to 1, of the difference's part parallel to `x0` that is taken off.
        norm_threshold: largest norm over channels and time of the difference of clean data; 0: none.
        momentum: adds what was before.
    """
    difference = conditional - unconditional
    if momentum is not None:
        difference = momentum.add(difference, sigma)
    if norm_threshold:
        norm = _per_item(sigma, difference).abs() * _norm(difference)
        difference = difference * (norm_threshold / norm.clamp(min=norm_threshold)).to(difference.dtype)
    if apg_scale:
        difference = difference - apg_scale * _parallel(difference, x0)
    return conditional - difference


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


def _per_item(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def _norm(x: Tensor) -> Tensor:
    """(B, 1, 1) Euclidean norm over channels and time, in at least float32, because squares overflow in half precision."""
    return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def _parallel(difference: Tensor, x0: Tensor) -> Tensor:
    """The part of each item's difference along its clean data."""
    precise = torch.promote_types(x0.dtype, torch.float32)
    direction = x0.to(precise) / _norm(x0).clamp(min=torch.finfo(precise).tiny)
    return ((difference.to(precise) * direction).sum(dim=(1, 2), keepdim=True) * direction).to(difference.dtype)
