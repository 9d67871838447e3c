"""Upstream's names for noise levels and samplers, which published scripts import; the work is done in `diffusion`.

Models are functions `model(x, t, **extra_args)` of x (B, C, T) and noise levels t (B,) that give a velocity. A callback gets a dict of
the state `x` (B, C, T) that a step begins with, its noise level `t`, the `sigma` there, its index `i` from 0, and the clean data
`denoised` that the model sees in it. Noise comes from torch's global generator. `disable_tqdm` is taken and has no effect: there are no
progress bars.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.grids import linear_grid
from stable_audio_tools.diffusion.objectives import Objective, RectifiedFlow, VPrediction
from stable_audio_tools.diffusion.samplers import Field, Prediction, Step, find_sampler, make_field
from stable_audio_tools.diffusion.timesteps import DistributionShift

Model = Callable[..., Any]
Report = Callable[[dict[str, Any]], None]


def get_alphas_sigmas(t: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of data and noise at t, on the path of the objective v."""
    return VPrediction().alpha_sigma(t)


t_to_alpha_sigma = get_alphas_sigmas


def alpha_sigma_to_t(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The t at which data and noise have these weights."""
    return torch.atan2(sigma, alpha) / (math.pi / 2)


@torch.no_grad()
def sample(
    model: Model,
    x: Tensor,
    steps: int,
    eta: float,
    callback: Report | None = None,
    sigma_max: float = 1.0,
    dist_shift: DistributionShift | None = None,
    cfg_pp: bool = False,
    **extra_args: Any,
) -> Tensor:
    """v-DDIM from noise x (B, C, T) to clean data.

    Args:
        eta: share of each step's noise that is fresh.
        sigma_max: the t to start from. dist_shift: of the levels, by the length of x.
        cfg_pp: go along the noise of the unconditional prediction, `uncond_output` of what `model(..., return_info=True)` tells beside it.
    """
    objective = VPrediction()
    ts = linear_grid(steps, sigma_max=sigma_max, shift=dist_shift, length=x.shape[-1])
    field = _cfgpp_field(model, objective, extra_args) if cfg_pp else make_field(partial(model, **extra_args), objective)
    chosen = find_sampler("v-ddim-cfgpp" if cfg_pp else "v-ddim", objective, {"eta": eta})
    return chosen.sample(field, x, ts, callback=_reporting(callback, objective))


def sample_discrete_euler(
    model: Model,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1.0,
    sigmas: Tensor | None = None,
    callback: Report | None = None,
    dist_shift: DistributionShift | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """Euler's method along a rectified flow, on even or given noise levels."""
    return _along_flow("euler", partial(model, **extra_args), x, _levels(x, steps, sigma_max, sigmas, dist_shift), callback)


def sample_rk4(
    model: Model,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1.0,
    sigmas: Tensor | None = None,
    callback: Report | None = None,
    dist_shift: DistributionShift | None = None,
    **extra_args: Any,
) -> Tensor:
    """The classical Runge-Kutta method of order 4 along a rectified flow, on even or given noise levels."""
    return _along_flow("rk4", partial(model, **extra_args), x, _levels(x, steps, sigma_max, sigmas, dist_shift), callback)


def sample_flow_dpmpp(
    model: Model,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1.0,
    sigmas: Tensor | None = None,
    callback: Report | None = None,
    dist_shift: DistributionShift | None = None,
    disable_tqdm: bool = False,
    **extra_args: Any,
) -> Tensor:
    """DPM-Solver++ (2M) along a rectified flow, on even or given noise levels."""
    return _along_flow("dpmpp", partial(model, **extra_args), x, _levels(x, steps, sigma_max, sigmas, dist_shift), callback)


def sample_flow_pingpong(
    model: Model,
    x: Tensor,
    steps: int | None = None,
    sigma_max: float = 1.0,
    sigmas: Tensor | None = None,
    callback: Report | None = None,
    dist_shift: DistributionShift | None = None,
    **extra_args: Any,
) -> Tensor:
    """Clean data and fresh noise in turn, for models distilled to few steps, on even or given noise levels."""
    return _along_flow("pingpong", partial(model, **extra_args), x, _levels(x, steps, sigma_max, sigmas, dist_shift), callback)


@torch.no_grad()
def sample_k(
    model_fn: Model,
    noise: Tensor,
    init_data: Tensor | None = None,
    steps: int = 100,
    sampler_type: str = "dpmpp-2m-sde",
    sigma_min: float = 0.01,
    sigma_max: float = 100.0,
    rho: float = 1.0,
    device: str | torch.device | None = None,
    callback: Report | None = None,
    cond_fn: None = None,
    **extra_args: Any,
) -> Tensor:
    """Sample a model of the objective v, from noise (B, C, T) or from data with noise.

    Args:
        init_data: (B, C, T) data to vary.
        sigma_min, sigma_max, rho: ratios of noise to data of the samplers that step in them. Others start at t = `sigma_max`, at most 1.
        device: if given it must be where the noise is.

    Raises:
        ConfigError: no such sampler, or it does not fit.
        ValueError: another device, or guidance by a function, which is not to be had.
    """
    _check(noise, device, cond_fn)
    objective, name = VPrediction(), sampler_type
    ratios = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho} if _steps_in_ratios(name, objective) else {}
    chosen = find_sampler(name, objective, ratios)
    ts = chosen.schedule(steps, length=noise.shape[-1], noise_level=1.0 if ratios else min(sigma_max, 1.0))
    x = objective.add_noise(torch.zeros_like(noise) if init_data is None else init_data, noise, ts[0])
    field = _cfgpp_field(model_fn, objective, extra_args) if chosen.cfgpp else make_field(partial(model_fn, **extra_args), objective)
    return chosen.sample(field, x, ts, callback=_reporting(callback, objective))


@torch.no_grad()
def sample_rf(
    model_fn: Model,
    noise: Tensor,
    init_data: Tensor | None = None,
    steps: int = 100,
    sampler_type: str = "euler",
    sigma_max: float = 1.0,
    device: str | torch.device | None = None,
    callback: Report | None = None,
    cond_fn: None = None,
    dist_shift: DistributionShift | None = None,
    **extra_args: Any,
) -> Tensor:
    """Sample a rectified flow, from noise (B, C, T) or from data with noise, on the levels that generation and demos use.

    Args:
        init_data: (B, C, T) data to vary. sigma_max: the noise level to start from, at most 1. dist_shift: the model's.
        device: if given it must be where the noise is.

    Raises:
        ConfigError, ValueError: as `sample_k`.
    """
    _check(noise, device, cond_fn)
    objective = RectifiedFlow()
    chosen = find_sampler(sampler_type, objective)
    ts = chosen.schedule(steps, length=noise.shape[-1], shift=dist_shift, noise_level=min(sigma_max, 1.0))
    x = noise if init_data is None else objective.add_noise(init_data, noise, ts[0])
    return chosen.sample(make_field(partial(model_fn, **extra_args), objective), x, ts, callback=_reporting(callback, objective))


def _levels(x: Tensor, steps: int | None, sigma_max: float, sigmas: Tensor | None, shift: DistributionShift | None) -> Tensor:
    if sigmas is not None:
        return sigmas
    if steps is None:
        raise ValueError("give either steps or sigmas")
    return linear_grid(steps, sigma_max=sigma_max, shift=shift, length=x.shape[-1])


@torch.no_grad()
def _along_flow(name: str, model: Model, x: Tensor, ts: Tensor, callback: Report | None) -> Tensor:
    objective = RectifiedFlow()
    return find_sampler(name, objective).sample(make_field(model, objective), x, ts, callback=_reporting(callback, objective))


def _cfgpp_field(model: Model, objective: Objective, extra_args: dict[str, Any]) -> Field:
    def field(x: Tensor, t: Tensor) -> Prediction:
        output, info = model(x, t, return_info=True, **extra_args)
        return Prediction(output, objective.denoised(x, output, t), objective.noise(x, info.get("uncond_output", output), t))

    return field


def _reporting(callback: Report | None, objective: Objective) -> Callable[[Step], None] | None:
    if callback is None:
        return None

    def report(step: Step) -> None:
        callback({"x": step.x, "t": step.t, "sigma": objective.weights(step.t)[1], "i": step.index, "denoised": step.x0})

    return report


def _steps_in_ratios(name: str, objective: Objective) -> bool:
    return find_sampler(name, objective).sampler.ratios


def _check(noise: Tensor, device: str | torch.device | None, cond_fn: object) -> None:
    if device is not None and torch.device(device).type != noise.device.type:
        raise ValueError(f"device is {device} but the noise is on {noise.device}")
    if cond_fn is not None:
        raise ValueError("cond_fn is not to be had: guidance is the model's own, through its cfg_scale; leave it out")
