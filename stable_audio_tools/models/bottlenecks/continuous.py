"""Bottlenecks with real-valued latents: variational, bounded by tanh, on the unit sphere."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.nn.norms import unit_length

from .base import BaseBottleneckConfig, Bottleneck, Info

MIN_DEVIATION = 1e-4  # keeps log(sigma) finite; the published models were trained with it


class EmptyParams(StrictModel):
    """No keys: this component has no settings."""


class VAEParams(StrictModel):
    mode: Literal["sample", "mean"] = Field(
        default="sample", description="latents outside of training: drawn, as published models do, or the mean, the same every time"
    )


class VAEConfig(BaseBottleneckConfig):
    """The encoder's channels are means and scales; latents are drawn from the normal distributions they describe."""

    loss_terms = ("kl",)

    type: Literal["vae"]
    config: VAEParams = Field(default_factory=VAEParams)

    def encoder_channels(self, latent_dim: int) -> int:
        return 2 * latent_dim

    def make(self) -> VAEBottleneck:
        return VAEBottleneck(self.config.mode)


class VAEBottleneck(Bottleneck):
    """(B, 2 C, T) -> (B, C, T), and `kl` in the info (arXiv:1312.6114)."""

    def __init__(self, mode: Literal["sample", "mean"] = "sample"):
        super().__init__()
        self.mode = mode

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        latents, kl = draw_latents(x, sample=sample and (self.training or self.mode == "sample"))
        return latents, {"kl": kl}


def draw_latents(x: Tensor, *, sample: bool) -> tuple[Tensor, Tensor]:
    """(B, 2 C, T) means and scales -> latents (B, C, T), drawn or the means, and the divergence, see `kl_divergence`."""
    mean, deviation = mean_and_deviation(x)
    latents = mean + deviation * torch.randn_like(mean) if sample else mean
    return latents, kl_divergence(mean, deviation)


def mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 2 C, T) means and scales, as an encoder gives them -> the normal distributions that they describe, (B, C, T) each."""
    mean, scale = x.chunk(2, dim=1)
    return mean, F.softplus(scale) + MIN_DEVIATION


def kl_divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Twice the divergence of N(mean, deviation^2) from N(0, 1), summed over channels, averaged over batch and time.

    The half is left out as in published models, whose loss weights assume so.
    """
    mean, variance = mean.float(), deviation.float().square()  # the logarithm of a half-precision variance loses the gradient
    return (mean.square() + variance - variance.log() - 1).sum(1).mean()


class TanhParams(StrictModel):
    scale: float = Field(default=1.0, gt=0, description="latents lie within -scale..scale")


class TanhConfig(BaseBottleneckConfig):
    """Bounded latents, nothing else."""

    type: Literal["tanh"]
    config: TanhParams = Field(default_factory=TanhParams)

    def make(self) -> TanhBottleneck:
        return TanhBottleneck(self.config.scale)


class TanhBottleneck(Bottleneck):
    """scale * tanh(x / scale)."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        return self.scale * torch.tanh(x / self.scale), {}


class L2NormConfig(BaseBottleneckConfig):
    """Latents of length one at every frame."""

    type: Literal["l2_norm"]
    config: EmptyParams = Field(default_factory=EmptyParams)

    def make(self) -> L2NormBottleneck:
        return L2NormBottleneck()


class L2NormBottleneck(Bottleneck):
    """x / |x| over the channels, on the way in and on the way out."""

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        return unit_length(x, dim=1), {}

    def decode(self, latents: Tensor) -> Tensor:
        return unit_length(latents, dim=1)
