"""Diffusion objectives: how clean data and noise mix at noise level t, what the model predicts, and how to read it back.

Conventions: t = 0 is data, t = 1 is noise; t is (B,) or a scalar; x0, noise and x_t are (B, C, T); "output" is what the model
gives for (x_t, t). Coefficients are computed in the dtype of t and applied in the dtype of x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

SIGMA_FLOOR = 0.1
"""Smallest noise level that an error of a predicted x0 is divided by; chosen: below it the network sees nearly clean data, and a
division by t would let the last few percent of the path dominate the loss."""


def expand(t: Tensor, x: Tensor) -> Tensor:
    """t (B,) or () shaped and typed to multiply x (B, ...); a scalar stays one, so it may live on the CPU."""
    return t.to(x.dtype).reshape(t.shape + (1,) * (x.ndim - 1) if t.ndim else ())


class Objective(ABC):
    """One way to mix data and noise and to predict the way back. Stateless.

    name: what configs call it (`diffusion_objective`).
    default_sampler: the sampler that generation uses when none is named.
    even_in_logsnr: sampling steps are even in logSNR rather than in t, where the model has no distribution shift.
    rate: along a trajectory, dx/dt = rate * output.
    """

    name: str
    default_sampler: str
    even_in_logsnr: ClassVar[bool] = False
    rate: ClassVar[float]

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that fit this objective."""
        from .samplers import SAMPLERS

        return tuple(name for name, sampler in SAMPLERS.items() if sampler.fits(self))

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of data and noise at t, each shaped like t."""

    @abstractmethod
    def weights(self, t: float) -> tuple[float, float]:
        """`alpha_sigma` of a number."""

    @abstractmethod
    def level(self, ratio: float) -> float:
        """The t at which sigma / alpha is `ratio`."""

    def ratio(self, t: float) -> float:
        """sigma / alpha at t, from 0 at t = 0 to infinity at t = 1."""
        alpha, sigma = self.weights(t)
        return sigma / alpha if t < 1 else math.inf

    def logsnr(self, t: float) -> float:
        """log(alpha / sigma) at t, infinite at both ends."""
        return math.inf if t <= 0 else -math.log(self.ratio(t))

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should output at (add_noise(x0, noise, t), t)."""

    @abstractmethod
    def denoised(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The clean data that an output implies."""

    @abstractmethod
    def noise(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise that an output implies."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma noise."""
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * noise


@dataclass(frozen=True)
class VPrediction(Objective):
    """Variance-preserving path on a quarter circle, velocity target. Salimans & Ho 2022, arXiv:2202.00512, appendix D."""

    name: str = "v"
    default_sampler: str = "v-ddim"
    rate: ClassVar[float] = math.pi / 2

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (math.pi / 2)
        return torch.cos(angle), torch.sin(angle)

    def weights(self, t: float) -> tuple[float, float]:
        angle = t * (math.pi / 2)
        return math.cos(angle), math.sin(angle)

    def level(self, ratio: float) -> float:
        return math.atan(ratio) / (math.pi / 2)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x0) * noise - expand(sigma, x0) * x0

    def denoised(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x_t) * x_t - expand(sigma, x_t) * output

    def noise(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return expand(sigma, x_t) * x_t + expand(alpha, x_t) * output


@dataclass(frozen=True)
class RectifiedFlow(Objective):
    """Straight path between data and noise, velocity target dx/dt. Liu et al. 2022, arXiv:2209.03003."""

    name: str = "rectified_flow"
    default_sampler: str = "euler"
    even_in_logsnr: ClassVar[bool] = True
    rate: ClassVar[float] = 1.0

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def weights(self, t: float) -> tuple[float, float]:
        return 1 - t, t

    def level(self, ratio: float) -> float:
        return ratio / (1 + ratio)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - x0

    def denoised(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return x_t - expand(t, x_t) * output

    def noise(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return x_t + expand(1 - t, x_t) * output


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        VPrediction(),
        RectifiedFlow(),
        # The same path, for models distilled to a few steps: each step denoises fully and adds fresh noise.
        RectifiedFlow("rf_denoiser", default_sampler="pingpong"),
    )
}


def parse_objective(name: str) -> Objective:
    """The objective that a config's `diffusion_objective` names.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in OBJECTIVES:
        raise ConfigError([Problem((), f"unknown diffusion objective {name!r}", did_you_mean(name, OBJECTIVES))])
    return OBJECTIVES[name]


def velocity_from_x0(objective: Objective, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The output that a network predicting clean data implies, v = (denoised(x_t, 0, t) - x0) / max(sigma, SIGMA_FLOOR).

    Both objectives read an output v as denoised(x_t, v, t) = denoised(x_t, 0, t) - sigma v, which is solved for v:
    (x_t - x0) / t on the straight path, (alpha x_t - x0) / sigma on the circle. The floor makes the velocity, and with it the
    weight of an error in x0, finite near t = 0; at or above it `objective.denoised` gives back exactly `x0`. Below it the
    implied data is a mix of `x0` and the nearly clean input. As in Li & He 2025, arXiv:2511.13720.

    Args:
        x_t: (B, C, T) noisy data.
        x0: (B, C, T) the predicted clean data.
        t: (B,) noise levels.
    """
    _, sigma = objective.alpha_sigma(t)
    return (objective.denoised(x_t, x_t.new_zeros(()), t) - x0) / expand(sigma.clamp(min=SIGMA_FLOOR), x_t)
