"""`softnorm`: a learned gain and offset per channel, and a loss that leaves latents with mean 0 and variance 1."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.nn.exact import at_least_single

from .base import BaseBottleneckConfig, Bottleneck, Info

MIN_VARIANCE = 1e-4  # published code's; a silent channel else has an infinite loss
ACROSS_CHANNELS = 0.4  # weight of each frame's statistics against each channel's, as in published code
NOISE = 1e-2  # of noise_regularize, in standard deviations of each channel, as in published code


class SoftNormParams(StrictModel):
    dim: PositiveInt = Field(default=32, description="latent channels")
    noise_augment_dim: NonNegativeInt = Field(default=0, description="channels of noise, of learned strength, beside the decoder's latents")
    noise_regularize: bool = Field(default=False, description="training decodes latents with a little noise on them")


class SoftNormConfig(BaseBottleneckConfig):
    """Deterministic latents of about unit variance, without the noise of a VAE."""

    loss_terms = ("softnorm",)

    type: Literal["softnorm"]
    config: SoftNormParams = Field(default_factory=SoftNormParams)
    latent_key = "dim"

    @property
    def latent_channels(self) -> int:
        return self.config.dim

    def decoder_channels(self, latent_dim: int) -> int:
        return latent_dim + self.config.noise_augment_dim

    def make(self) -> SoftNormBottleneck:
        return SoftNormBottleneck(self.config)


class SoftNormBottleneck(Bottleneck):
    """(B, C, T) -> gain * x + offset; in training `softnorm_loss` in the info."""

    def __init__(self, params: SoftNormParams):
        super().__init__()
        self.scaling_factor = nn.Parameter(torch.ones(1, params.dim, 1))
        self.bias = nn.Parameter(torch.zeros(1, params.dim, 1))
        self.noise_scaling_factor = nn.Parameter(torch.ones(1, params.noise_augment_dim, 1))
        self.noise_regularize = params.noise_regularize

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        latents = x * self.scaling_factor + self.bias
        return latents, {"softnorm_loss": softnorm_loss(latents)} if self.training else {}

    def decode(self, latents: Tensor) -> Tensor:
        if self.training and self.noise_regularize:
            latents = latents + torch.randn_like(latents) * NOISE * latents.var(-1, keepdim=True, correction=0).sqrt()
        gain = self.noise_scaling_factor
        noise = torch.randn(len(latents), gain.shape[1], latents.shape[-1], device=latents.device, dtype=latents.dtype)
        # Without noise channels too: distributed training waits for a gradient of every parameter, and this one is file format.
        return torch.cat([latents, gain * noise], dim=1)


def softnorm_loss(latents: Tensor) -> Tensor:
    """Twice the divergence from N(0, 1) of every channel over time, and of every frame over channels at a lower weight; a scalar."""
    latents = at_least_single(latents)
    return _divergence(latents, -1) + ACROSS_CHANNELS * _divergence(latents, -2)


def _divergence(x: Tensor, dim: int) -> Tensor:
    mean = x.mean(dim)
    variance = x.var(dim, correction=min(1, x.shape[dim] - 1)).clamp(min=MIN_VARIANCE)
    return (mean.square() + variance - variance.log() - 1).mean()
