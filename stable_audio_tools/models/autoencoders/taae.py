"""TAAE: a codec that resamples by convolutions and thinks by transformers, after Parker et al. 2024 (arXiv:2411.19842).

The encoder is an input convolution, one stage per stride (a strided convolution, then transformer blocks at the new rate) and an
output convolution; the decoder mirrors it. B batch, C channels, T samples or frames.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.attention_backends import Backend
from stable_audio_tools.nn.conv import ResidualUnit, SnakeBeta, WNConv1d, downsampler, upsampler
from stable_audio_tools.nn.transformer import TransformerBlock
from stable_audio_tools.nn.visibility import Visibility, Window

from .base import BaseDecoderConfig, BaseEncoderConfig
from .sizes import repeat_absent, uneven_lists

DILATIONS = (1, 3, 9)
HEAD_WIDTH = 128  # of a published model, as is the next
NORM_EPS = 1e-2
DEFAULT_DEPTH = 3

Reach = Annotated[int, Field(ge=-1)]


class TAAEParams(StrictModel):
    """What encoder and decoder share. Stage i works at `channels * c_mults[i]` channels behind its stride."""

    channels: PositiveInt = Field(default=128, description="width, in whose multiples c_mults counts")
    c_mults: tuple[PositiveInt, ...] = Field(
        default=(1, 2, 4, 8), min_length=1, description="width of each stage, in channels; the first is also that next to the audio"
    )
    strides: tuple[PositiveInt, ...] = Field(
        default=(2, 4, 8, 8), min_length=1, description="from the audio inwards; their product is the ratio"
    )
    transformer_depths: tuple[NonNegativeInt, ...] = Field(
        default=(DEFAULT_DEPTH,) * 4, description=f"transformer blocks of each stage; absent: {DEFAULT_DEPTH} in every stage"
    )
    use_snake: bool = Field(default=False, description="SnakeBeta in front of each resampling convolution, else nothing")
    sliding_window: tuple[Reach, Reach] | None = Field(
        default=(63, 64), description="frames that attention sees to the left and right; -1: all on that side; null: all"
    )
    checkpointing: bool = Field(default=False, description="recompute each stage in the backward pass: less memory, more work")
    conformer: bool = Field(default=False, description="a gated convolution in each transformer block")
    layer_scale: bool = Field(default=True, description="learned gains on the transformer's branches, nearly zero at first")
    use_dilated_conv: bool = Field(default=False, description="three residual units, as in Oobleck, next to each resampling convolution")
    backend: Backend = Field(default="auto", description="attention kernel")

    @model_validator(mode="after")
    def _absent_depths_fit(self) -> Self:
        repeat_absent(self, "c_mults", {"transformer_depths": DEFAULT_DEPTH})
        return self

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        """Stages are counted by `c_mults`, and attention divides their widths into heads."""
        problems = [*uneven_lists(self, "c_mults", "strides", "transformer_depths")]
        for index, (mult, depth) in enumerate(zip(self.c_mults, self.transformer_depths, strict=False)):
            width = self.channels * mult
            if depth and width > HEAD_WIDTH and width % HEAD_WIDTH:
                message = f"stage {index} is channels {self.channels} times {mult} = {width} wide, which makes no attention heads"
                fix = f"make it a multiple of {HEAD_WIDTH}, or less than that"
                problems.append(Problem(("c_mults", index), message, fix, mult))
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first stride and behind each one."""
        return tuple(self.channels * mult for mult in (self.c_mults[0], *self.c_mults))


class TAAEEncoderParams(TAAEParams):
    in_channels: PositiveInt = Field(default=2, description="audio channels, or the pretransform's")
    latent_dim: PositiveInt = Field(default=32, description="output channels; twice the model's latent_dim for a VAE")


class TAAEDecoderParams(TAAEParams):
    out_channels: PositiveInt = Field(default=2, description="audio channels, or the pretransform's")
    latent_dim: PositiveInt = Field(default=32, description="input channels: the model's latent_dim")


class TAAEEncoderConfig(BaseEncoderConfig):
    type: Literal["taae"]
    config: TAAEEncoderParams = Field(default_factory=TAAEEncoderParams)

    def make(self) -> TAAEEncoder:
        return TAAEEncoder(self.config)


class TAAEDecoderConfig(BaseDecoderConfig):
    type: Literal["taae"]
    config: TAAEDecoderParams = Field(default_factory=TAAEDecoderParams)

    def make(self) -> TAAEDecoder:
        return TAAEDecoder(self.config)


class TAAEEncoder(nn.Module):
    """(B, in_channels, T) -> (B, latent_dim, T / prod(strides)), where the product divides T.

    A stage of stride 1 that changes the width returns one frame more, which that of the decoder takes off again.
    """

    def __init__(self, params: TAAEEncoderParams):
        super().__init__()
        widths = params.widths
        self.layers = nn.Sequential(
            WNConv1d(params.in_channels, widths[0], 7, padding=3),
            *(
                EncoderStage(*sizes, params)
                for sizes in zip(widths[:-1], widths[1:], params.strides, params.transformer_depths, strict=True)
            ),
            _activation(widths[-1], params),
            WNConv1d(widths[-1], params.latent_dim, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TAAEDecoder(nn.Module):
    """(B, latent_dim, T) -> (B, out_channels, T * prod(strides)); odd strides lose some samples at the end, see `upsampler`."""

    def __init__(self, params: TAAEDecoderParams):
        super().__init__()
        widths, strides, depths = (sizes[::-1] for sizes in (params.widths, params.strides, params.transformer_depths))
        self.layers = nn.Sequential(
            WNConv1d(params.latent_dim, widths[0], 3, padding=1),
            *(DecoderStage(*sizes, params) for sizes in zip(widths[:-1], widths[1:], strides, depths, strict=True)),
            _activation(widths[-1], params),
            WNConv1d(widths[-1], params.out_channels, 7, padding=3, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Stage(nn.Module):
    """Recomputes what it runs in the backward pass where `checkpointing` says so."""

    def __init__(self, params: TAAEParams):
        super().__init__()
        self.checkpointing = params.checkpointing

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.run, x, use_reentrant=False, preserve_rng_state=False)
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class EncoderStage(_Stage):
    """(B, in_channels, T) -> (B, out_channels, T / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, depth: int, params: TAAEParams):
        super().__init__(params)
        self.layers = nn.Sequential(
            *_residual_units(in_channels, params),
            _activation(in_channels, params),
            nn.Identity() if stride == 1 and in_channels == out_channels else downsampler(in_channels, out_channels, stride),
            FrameTransformer(out_channels, depth, params),
        )

    def run(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderStage(_Stage):
    """(B, in_channels, T) -> (B, out_channels, T * stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, depth: int, params: TAAEParams):
        super().__init__(params)
        self.changes_width = in_channels != out_channels
        self.layers = nn.Sequential(
            FrameTransformer(in_channels, depth, params),
            _activation(out_channels, params),
            nn.Identity() if stride == 1 and not self.changes_width else upsampler(in_channels, out_channels, stride),
            *_residual_units(out_channels, params),
        )

    def run(self, x: Tensor) -> Tensor:
        transformer, activation, resample, *units = self.layers
        x = transformer(x)
        # In published checkpoints the activation has one gain per channel behind the stage, so where the width changes it can only
        # stand there; where it does not, it stands in front of the convolution, as they were trained.
        x = activation(resample(x)) if self.changes_width else resample(activation(x))
        for unit in units:
            x = unit(x)
        return x


class FrameTransformer(nn.Sequential):
    """Transformer blocks over frames, in a sliding window. (B, C, T) -> (B, C, T); the two holes keep the published indices."""

    def __init__(self, width: int, depth: int, params: TAAEParams):
        super().__init__(nn.Identity(), *(_block(width, params) for _ in range(depth)), nn.Identity())
        self.window: Window | None = params.sliding_window

    def forward(self, x: Tensor) -> Tensor:
        frames = x.mT
        length = frames.shape[1]
        blocks = [module for module in self if isinstance(module, TransformerBlock)]
        visibility = Visibility(length, length, window=self.window, device=x.device)
        rope = blocks[0].rope if blocks else None
        rotary = None if rope is None else rope(length)
        for block in blocks:
            frames = block(frames, attention_mask=visibility, rotary=rotary)
        return frames.mT


def _block(width: int, params: TAAEParams) -> TransformerBlock:
    return TransformerBlock(
        width,
        dim_heads=HEAD_WIDTH,
        add_rope=True,
        conformer=params.conformer,
        layer_scale=params.layer_scale,
        attn_kwargs={"qk_norm": "ln", "backend": params.backend},
        norm_kwargs={"eps": NORM_EPS},
    )


def _activation(channels: int, params: TAAEParams) -> nn.Module:
    return SnakeBeta(channels) if params.use_snake else nn.Identity()


def _residual_units(channels: int, params: TAAEParams) -> list[ResidualUnit]:
    dilations = DILATIONS if params.use_dilated_conv else ()
    return [ResidualUnit(channels, dilation=dilation, snake=params.use_snake) for dilation in dilations]
