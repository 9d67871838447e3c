"""Descript audio codec: its convolutional encoder and decoder, without the quantizer (arXiv:2306.06546, section 3).

The encoder is an input convolution, one block per stride (three residual units, Snake, a strided convolution that doubles the
width) and an output convolution; the decoder mirrors it. B batch, C channels, T samples or latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.conv import Snake, WNConv1d, downsampler, upsampler

from .base import BaseDecoderConfig, BaseEncoderConfig

DILATIONS = (1, 3, 9)


class DACEncoderParams(StrictModel):
    in_channels: PositiveInt = Field(default=1, description="audio channels, or the pretransform's")
    d_model: PositiveInt = Field(description="width next to the audio; it doubles at each stride")
    strides: tuple[PositiveInt, ...] = Field(description="from the audio inwards; their product is the ratio")
    latent_dim: PositiveInt | None = Field(
        default=None,
        description="output channels, made by a 1x1 convolution (twice the model's latent_dim for a VAE); absent: the innermost width",
    )

    @property
    def inner_width(self) -> int:
        return self.d_model * 2 ** len(self.strides)


class DACDecoderParams(StrictModel):
    latent_dim: PositiveInt = Field(description="input channels: the model's latent_dim")
    channels: PositiveInt = Field(description="width next to the latents; it halves, rounded down, at each rate")
    rates: tuple[PositiveInt, ...] = Field(description="strides from the latents outwards; their product is the ratio")
    out_channels: PositiveInt = Field(default=1, description="audio channels, or the pretransform's")

    @model_validator(mode="after")
    def _width_is_left(self) -> Self:
        if not self.channels >> len(self.rates):
            least = 2 ** len(self.rates)
            message = f"channels {self.channels}, halved once for each of {len(self.rates)} rates, leaves none"
            raise ConfigError([Problem(("channels",), message, f"set channels to {least} or more", self.channels)])
        return self


class DACEncoderConfig(BaseEncoderConfig):
    """Without `latent_dim` it gives `d_model` channels, doubled at each stride."""

    type: Literal["dac"]
    config: DACEncoderParams

    @property
    def out_channels(self) -> int:
        return self.config.latent_dim or self.config.inner_width

    def make(self) -> ProjectedDACEncoder:
        return ProjectedDACEncoder(self.config)


class DACDecoderConfig(BaseDecoderConfig):
    ratio_key = "rates"

    type: Literal["dac"]
    config: DACDecoderParams

    def make(self) -> WrappedDACDecoder:
        return WrappedDACDecoder(self.config)


class ProjectedDACEncoder(nn.Module):
    """(B, in_channels, T) -> (B, latent_dim, T / prod(strides)), where the product divides T."""

    def __init__(self, params: DACEncoderParams):
        super().__init__()
        self.encoder = DACEncoder(params.in_channels, params.d_model, params.strides, params.inner_width)
        self.proj_out = nn.Identity() if params.latent_dim is None else nn.Conv1d(params.inner_width, params.latent_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.encoder(x))


class WrappedDACDecoder(nn.Module):
    """`DACDecoder` under the name that published checkpoints give it."""

    def __init__(self, params: DACDecoderParams):
        super().__init__()
        self.decoder = DACDecoder(params.latent_dim, params.channels, params.rates, params.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x)


class DACEncoder(nn.Module):
    """(B, in_channels, T) -> (B, out_channels, T / prod(strides)), where the product divides T."""

    def __init__(self, in_channels: int, width: int, strides: Sequence[int], out_channels: int):
        super().__init__()
        widths = [width * 2**index for index in range(len(strides) + 1)]
        self.block = nn.Sequential(
            WNConv1d(in_channels, width, 7, padding=3),
            *(EncoderBlock(*sizes, stride) for sizes, stride in zip(pairwise(widths), strides, strict=True)),
            Snake(widths[-1]),
            WNConv1d(widths[-1], out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DACDecoder(nn.Module):
    """(B, in_channels, T) -> (B, out_channels, T * prod(rates)) within -1..1; odd rates lose some samples, see `upsampler`."""

    def __init__(self, in_channels: int, width: int, rates: Sequence[int], out_channels: int):
        super().__init__()
        widths = [width >> index for index in range(len(rates) + 1)]
        self.model = nn.Sequential(
            WNConv1d(in_channels, width, 7, padding=3),
            *(DecoderBlock(*sizes, rate) for sizes, rate in zip(pairwise(widths), rates, strict=True)),
            Snake(widths[-1]),
            WNConv1d(widths[-1], out_channels, 7, padding=3),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class EncoderBlock(nn.Module):
    """Residual units, then the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        units = (ResidualUnit(in_channels, dilation) for dilation in DILATIONS)
        self.block = nn.Sequential(*units, Snake(in_channels), downsampler(in_channels, out_channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DecoderBlock(nn.Module):
    """The stride, then residual units."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        units = (ResidualUnit(out_channels, dilation) for dilation in DILATIONS)
        self.block = nn.Sequential(Snake(in_channels), upsampler(in_channels, out_channels, stride), *units)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualUnit(nn.Module):
    """x + conv1x1(snake(conv7(snake(x)))), the 7-tap convolution dilated. (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.block = nn.Sequential(
            Snake(channels),
            WNConv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            Snake(channels),
            WNConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)
