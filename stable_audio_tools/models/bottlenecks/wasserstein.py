"""`wasserstein`: latents pulled towards a normal distribution by their maximum mean discrepancy (arXiv:1711.01558)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.nn.exact import at_least_single

from .base import BaseBottleneckConfig, Bottleneck, Info, append_noise

ROWS = 1024  # chosen: vectors compared at once; with 16384 vectors the distances then take 64 MiB instead of 1 GiB


class WassersteinParams(StrictModel):
    noise_augment_dim: NonNegativeInt = Field(default=0, description="channels of noise that the decoder gets beside the latents")
    bypass_mmd: bool = Field(default=False, description="no loss: the discrepancy is reported as 0")
    use_tanh: bool = Field(default=False, description="bound latents by tanh_scale * tanh(x / tanh_scale)")
    tanh_scale: float = Field(default=5.0, gt=0, description="of use_tanh")


class WassersteinConfig(BaseBottleneckConfig):
    """Latents as they are, or bounded, and a loss that makes all of them together normally distributed."""

    loss_terms = ("mmd",)

    type: Literal["wasserstein"]
    config: WassersteinParams = Field(default_factory=WassersteinParams)

    def decoder_channels(self, latent_dim: int) -> int:
        return latent_dim + self.config.noise_augment_dim

    def make(self) -> WassersteinBottleneck:
        return WassersteinBottleneck(self.config)


class WassersteinBottleneck(Bottleneck):
    """(B, C, T) -> (B, C, T); in training `mmd` in the info, of the latents before tanh."""

    def __init__(self, params: WassersteinParams):
        super().__init__()
        self.params = params

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        info = {"mmd": x.new_zeros(()) if self.params.bypass_mmd else discrepancy(x)} if self.training else {}
        scale = self.params.tanh_scale
        return (scale * torch.tanh(x / scale) if self.params.use_tanh else x), info

    def decode(self, latents: Tensor) -> Tensor:
        return append_noise(latents, self.params.noise_augment_dim)


def discrepancy(latents: Tensor) -> Tensor:
    """Maximum mean discrepancy, a scalar, of the frames of (B, C, T) from as many draws of the standard normal distribution."""
    frames = at_least_single(latents.mT.flatten(0, 1))
    noise = torch.randn_like(frames)
    return mean_kernel(frames, frames) + mean_kernel(noise, noise) - 2 * mean_kernel(frames, noise)


def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The mean of exp(-|x - y|^2 / C^2) over all pairs of rows of (N, C) and (M, C), without N * M numbers at once."""
    parts = [checkpoint(_kernel_sum, rows, y, use_reentrant=False, preserve_rng_state=False) for rows in x.split(ROWS)]
    return torch.stack(parts).sum() / (len(x) * len(y))


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    squared = x.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * (x @ y.mT)
    return torch.exp(-squared.clamp(min=0) / x.shape[-1] ** 2).sum()
