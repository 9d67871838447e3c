"""Oobleck: the convolutional encoder and decoder of the Stable Audio autoencoders (arXiv:2402.04825, section 3.1).

The encoder is an input convolution, one block per stride (three residual units, then a strided convolution) and an output
convolution; the decoder mirrors it. B batch, C channels, T samples or latent frames.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.conv import ResidualUnit, WNConv1d, activation, downsampler, upsampler

from .base import BaseDecoderConfig, BaseEncoderConfig

DILATIONS = (1, 3, 9)


class OobleckParams(StrictModel):
    """What encoder and decoder share. Block i works at `channels * c_mults[i]` channels behind its stride."""

    channels: PositiveInt = Field(default=128, description="width next to the audio")
    c_mults: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8), min_length=1, description="width of each block, in channels")
    strides: tuple[PositiveInt, ...] = Field(
        default=(2, 4, 8, 8), min_length=1, description="from the audio inwards; their product is the ratio"
    )
    use_snake: bool = Field(default=False, description="SnakeBeta activations, else ELU")
    checkpointing: bool = Field(default=False, description="recompute residual units in the backward pass: less memory, more work")

    @model_validator(mode="after")
    def _one_width_per_stride(self) -> Self:
        if len(self.c_mults) != len(self.strides):
            message = f"c_mults has {len(self.c_mults)} entries and strides has {len(self.strides)}"
            raise ConfigError([Problem(("strides",), message, "give one width per stride")])
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first stride and behind each one."""
        return (self.channels, *(self.channels * mult for mult in self.c_mults))


class OobleckEncoderParams(OobleckParams):
    in_channels: PositiveInt = Field(default=2, description="audio channels, or the pretransform's")
    latent_dim: PositiveInt = Field(default=32, description="output channels; twice the model's latent_dim for a VAE")
    antialias_activation: bool = Field(default=False, description="run the last activation at twice the rate; those of blocks stay")


class OobleckDecoderParams(OobleckParams):
    out_channels: PositiveInt = Field(default=2, description="audio channels, or the pretransform's")
    latent_dim: PositiveInt = Field(default=32, description="input channels: the model's latent_dim")
    antialias_activation: bool = Field(
        default=False,
        description="run activations at twice the rate, but those of residual units",
    )
    use_nearest_upsample: bool = Field(default=False, description="repeat and convolve instead of transposed convolutions")
    final_tanh: bool = Field(default=True, description="keep the output within -1..1")


class OobleckEncoderConfig(BaseEncoderConfig):
    type: Literal["oobleck"]
    config: OobleckEncoderParams = Field(default_factory=OobleckEncoderParams)

    def make(self) -> OobleckEncoder:
        return OobleckEncoder(self.config)


class OobleckDecoderConfig(BaseDecoderConfig):
    type: Literal["oobleck"]
    config: OobleckDecoderParams = Field(default_factory=OobleckDecoderParams)

    def make(self) -> OobleckDecoder:
        return OobleckDecoder(self.config)


class OobleckEncoder(nn.Module):
    """(B, in_channels, T) -> (B, latent_dim, T / prod(strides)), where the product divides T."""

    def __init__(self, params: OobleckEncoderParams):
        super().__init__()
        widths = params.widths
        self.layers = nn.Sequential(
            WNConv1d(params.in_channels, widths[0], 7, padding=3),
            *(EncoderBlock(*sizes, params) for sizes in zip(widths[:-1], widths[1:], params.strides, strict=True)),
            activation(widths[-1], snake=params.use_snake, antialias=params.antialias_activation),
            WNConv1d(widths[-1], params.latent_dim, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OobleckDecoder(nn.Module):
    """(B, latent_dim, T) -> (B, out_channels, T * prod(strides)); odd strides lose some samples at the end, see `upsampler`."""

    def __init__(self, params: OobleckDecoderParams):
        super().__init__()
        widths, strides = params.widths[::-1], params.strides[::-1]
        self.layers = nn.Sequential(
            WNConv1d(params.latent_dim, widths[0], 7, padding=3),
            *(DecoderBlock(*sizes, params) for sizes in zip(widths[:-1], widths[1:], strides, strict=True)),
            activation(widths[-1], snake=params.use_snake, antialias=params.antialias_activation),
            WNConv1d(widths[-1], params.out_channels, 7, padding=3, bias=False),
            nn.Tanh() if params.final_tanh else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class EncoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, params: OobleckEncoderParams):
        super().__init__()
        self.layers = nn.Sequential(
            *_residual_units(in_channels, params),
            activation(in_channels, snake=params.use_snake),
            downsampler(in_channels, out_channels, stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, params: OobleckDecoderParams):
        super().__init__()
        self.layers = nn.Sequential(
            activation(in_channels, snake=params.use_snake, antialias=params.antialias_activation),
            upsampler(in_channels, out_channels, stride, nearest=params.use_nearest_upsample),
            *_residual_units(out_channels, params),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _residual_units(channels: int, params: OobleckParams) -> list[ResidualUnit]:
    return [ResidualUnit(channels, dilation=d, snake=params.use_snake, checkpointing=params.checkpointing) for d in DILATIONS]
