"""DAU1d: the U-Net of Dance Diffusion, residual convolutions at every rate and self-attention at the lower ones.

Alone it denoises audio; as the decoder of a diffusion autoencoder it sees the latents beside the noisy audio, as channels.

B batch, C channels, T frames. Level 0 works at the rate of the input, level k behind `strides[k - 1]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.conv import Snake
from stable_audio_tools.nn.embeddings import FourierFeatures

from .base import BaseDecoderDenoiserConfig, BaseNetworkConfig, BaseUnconditionalConfig, Denoiser, halved, refuse_inputs

NOISE_FEATURES = 16  # channels that tell a noise level
HEAD_CHANNELS = 32
CUBIC = (-0.01171875, -0.03515625, 0.11328125, 0.43359375, 0.43359375, 0.11328125, -0.03515625, -0.01171875)
"""Low-pass filter between two rates: Keys' cubic (a = -1/2) stretched by two, sampled halfway between frames."""
CUBIC_MARGIN = 3
"""Frames that the lower rate must have for its ends to be reflected."""


class DAU1dParams(StrictModel):
    io_channels: PositiveInt = Field(default=2, description="channels in and out")
    depth: PositiveInt = Field(default=14, description="number of levels")
    n_attn_layers: NonNegativeInt = Field(default=6, description="the n + 1 lowest levels have attention; 0: none has")
    channels: tuple[PositiveInt, ...] = Field(
        default=(128, 128, 256, 256) + (512,) * 10, description="width of each level; entries beyond depth have no effect"
    )
    strides: tuple[PositiveInt, ...] = Field(
        default=(2,) * 13, description="from each level to the next; entries beyond depth - 1 have no effect"
    )
    learned_resample: bool = Field(default=False, description="strided convolutions for the fixed cubic filter, which halves only")
    kernel_size: PositiveInt = Field(default=5, description="of the residual convolutions, odd")
    conv_bias: bool = Field(default=True, description="biases in the residual convolutions")
    use_snake: bool = Field(default=False, description="Snake activations, else GELU")
    cond_dim: NonNegativeInt = Field(default=0, description="channels of a diffusion autoencoder's latents; 0: it sees none")
    cond_noise_aug: bool = Field(default=False, description="train on latents of a random noise level, which the network is told")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._level_problems(), *self._option_problems()]:
            raise ConfigError(problems)
        return self

    @property
    def factors(self) -> tuple[int, ...]:
        """The strides in use."""
        return self.strides[: self.depth - 1]

    @property
    def min_frames(self) -> int:
        """Frames of the shortest input that every fixed filter can reflect."""
        ratio = math.prod(self.factors)
        filtered = [] if self.learned_resample else [level for level, stride in enumerate(self.factors) if stride == 2]
        shortest = CUBIC_MARGIN * math.prod(self.factors[: filtered[-1] + 1]) if filtered else ratio
        return -(-shortest // ratio) * ratio

    def attends(self, level: int) -> bool:
        return self.n_attn_layers > 0 and level >= max(1, self.depth - self.n_attn_layers - 1)

    def _level_problems(self) -> Iterator[Problem]:
        if len(self.channels) < self.depth:
            message = f"channels has {len(self.channels)} entries for {self.depth} levels (depth)"
            yield Problem(("channels",), message, f"give one width per level, or set depth to {len(self.channels)}")
            return
        if len(self.strides) < self.depth - 1:
            message = f"strides has {len(self.strides)} entries for the {self.depth - 1} steps between {self.depth} levels (depth)"
            yield Problem(("strides",), message, f"give one stride per step, or set depth to {len(self.strides) + 1}")
        for index, stride in enumerate(self.factors):
            if stride > 2 and not self.learned_resample:
                message = f"stride {stride} needs learned_resample: the fixed filter halves the rate"
                yield Problem(("strides", index), message, 'set "learned_resample": true, or use 1 or 2', stride)
        for level in filter(self.attends, range(self.depth)):
            for index in (level - 1, level):
                yield from self._head_problem(index)

    def _head_problem(self, index: int) -> Iterator[Problem]:
        width = self.channels[index]
        if width % _heads(width):
            message = f"{width} channels cannot be split into {_heads(width)} attention heads"
            yield Problem(("channels", index), message, f"use a multiple of {HEAD_CHANNELS} at levels with attention", width)

    def _option_problems(self) -> Iterator[Problem]:
        if self.kernel_size % 2 == 0:
            yield Problem(("kernel_size",), f"kernel_size must be odd, got {self.kernel_size}", f"nearest: {self.kernel_size + 1}")
        if self.cond_noise_aug and not self.cond_dim:
            yield Problem(("cond_noise_aug",), "has no effect without cond_dim", "remove it, or set cond_dim")


class DAU1dConfig(BaseNetworkConfig):
    """What both uses of the network state."""

    type: Literal["DAU1d"]
    config: DAU1dParams = Field(default_factory=DAU1dParams)

    @property
    def io_channels(self) -> int:
        return self.config.io_channels

    @property
    def frame_multiple(self) -> tuple[str, int]:
        return "product of strides", math.prod(self.config.factors)

    @property
    def min_frames(self) -> int:
        return self.config.min_frames


class DAU1dUnconditionalConfig(DAU1dConfig, BaseUnconditionalConfig):
    """The network alone."""

    @model_validator(mode="after")
    def _sees_nothing_else(self) -> Self:
        if self.config.cond_dim:
            message = f"cond_dim is {self.config.cond_dim}, but a diffusion_uncond model has no latents to see"
            raise ConfigError([Problem(("config", "cond_dim"), message, "set it to 0, or make a diffusion_autoencoder")])
        return self

    def build(self) -> DAU1d:
        return DAU1d(self.config)


class DAU1dDecoderConfig(DAU1dConfig, BaseDecoderDenoiserConfig):
    """The network beside latents."""

    @property
    def cond_channels(self) -> tuple[str, int]:
        return "cond_dim", self.config.cond_dim

    def build(self) -> DAU1dDenoiser:
        return DAU1dDenoiser(halved(DAU1d(self.config)))


class DAU1dDenoiser(Denoiser):
    """The network under the name `model`, where diffusion autoencoders have it."""

    def __init__(self, model: DAU1d):
        super().__init__()
        self.model = model

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        cross_attn_dropped: Tensor | None = None,
        global_cond: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        mask: Tensor | None = None,
        exit_layer_ix: int | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """As `Denoiser.forward`, of whose inputs it takes `input_concat_cond` alone; any other raises ValueError."""
        refuse_inputs(
            "a DAU1d",
            cross_attn_cond=cross_attn_cond,
            cross_attn_mask=cross_attn_mask,
            global_cond=global_cond,
            prepend_cond=prepend_cond,
            prepend_cond_mask=prepend_cond_mask,
            mask=mask,
            exit_layer_ix=exit_layer_ix,
            hidden=hidden,
        )
        return self.model(x, t, input_concat_cond)


class DAU1d(nn.Module):
    """Noisy audio (B, io_channels, T) at noise levels (B,) to a prediction of its shape. Weights start at half the default."""

    def __init__(self, params: DAU1dParams):
        super().__init__()
        self.params = params
        self.timestep_embed = FourierFeatures(NOISE_FEATURES)
        self.net = halved(_network(params))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, cond_aug_scale: float | None = None) -> Tensor:
        """The prediction (B, io_channels, T).

        Args:
            cond: (B, cond_dim, any length) latents, brought to T frames by linear interpolation.
            cond_aug_scale: noise level of the latents under `cond_noise_aug`; default: a random one for each item in training mode,
                else 0. As in arXiv:2106.15282, section 4.

        Raises:
            ValueError: channels, or a number of frames, that the network does not take.
        """
        self._check(x, cond)
        if cond is None:
            return self.net(torch.cat((x, self._level_channels(t, x)), dim=1))
        cond = cond if cond.shape[-1] == x.shape[-1] else F.interpolate(cond, x.shape[-1], mode="linear")
        if not self.params.cond_noise_aug:
            return self.net(torch.cat((x, self._level_channels(t, x), cond), dim=1))
        level = self._augmentation_level(cond, cond_aug_scale)
        if self.training or cond_aug_scale:  # else the level is 0, and nothing is drawn
            cond = cond + torch.randn_like(cond) * level[:, None, None].to(cond.dtype)
        return self.net(torch.cat((x, self._level_channels(t, x), self._level_channels(level, x), cond), dim=1))

    def _level_channels(self, level: Tensor, x: Tensor) -> Tensor:
        """(B, NOISE_FEATURES, T), the same at every frame of x (B, C, T)."""
        return self.timestep_embed(level)[:, :, None].to(x.dtype).expand(-1, -1, x.shape[-1])

    def _augmentation_level(self, cond: Tensor, scale: float | None) -> Tensor:
        """(B,) in float32."""
        if scale is None and self.training:
            return torch.rand(cond.shape[0], device=cond.device)
        return torch.full((cond.shape[0],), scale or 0.0, device=cond.device)

    def _check(self, x: Tensor, cond: Tensor | None) -> None:
        params = self.params
        if x.ndim != 3 or x.shape[1] != params.io_channels:
            raise ValueError(f"input has shape {tuple(x.shape)}, expected (batch, {params.io_channels}, frames)")
        got = 0 if cond is None else cond.shape[1]
        if got != params.cond_dim:
            raise ValueError(f"cond has {got} channels, the model has cond_dim {params.cond_dim}")
        multiple, frames = math.prod(params.factors), x.shape[-1]
        if frames % multiple or frames < params.min_frames:
            wanted = max(params.min_frames, -(-frames // multiple) * multiple)
            raise ValueError(
                f"{frames} frames are no multiple of {multiple} (product of strides) from {params.min_frames} up; pad to {wanted}"
            )


def _network(params: DAU1dParams) -> nn.Sequential:
    width = params.channels[0]
    levels = 2 if params.cond_noise_aug else 1
    inputs = params.io_channels + params.cond_dim + levels * NOISE_FEATURES
    return nn.Sequential(
        ResidualConv(inputs, width, width, params),
        ResidualConv(width, width, width, params),
        ResidualConv(width, width, width, params),
        _lower_levels(params, 1),
        ResidualConv(_joined(params, 0), width, width, params),
        ResidualConv(width, width, width, params),
        ResidualConv(width, width, params.io_channels, params, last=True),
    )


def _lower_levels(params: DAU1dParams, level: int) -> nn.Module:
    """Everything from `level` downwards; (B, C, T) of the level above to (B, 2 C, T)."""
    if level == params.depth:
        return nn.Identity()
    above, width, stride = params.channels[level - 1], params.channels[level], params.strides[level - 1]
    attends = params.attends(level)
    return Beside(
        _downsampler(above, stride, learned=params.learned_resample),
        ResidualConv(above, width, width, params),
        _attention(width, attends),
        ResidualConv(width, width, width, params),
        _attention(width, attends),
        ResidualConv(width, width, width, params),
        _attention(width, attends),
        _lower_levels(params, level + 1),
        ResidualConv(_joined(params, level), width, width, params),
        _attention(width, attends),
        ResidualConv(width, width, width, params),
        _attention(width, attends),
        ResidualConv(width, width, above, params),
        _attention(above, attends),
        _upsampler(above, stride, learned=params.learned_resample),
    )


def _joined(params: DAU1dParams, level: int) -> int:
    """Channels behind the lower levels, which stand beside their own input."""
    return params.channels[level] * (1 if level == params.depth - 1 else 2)


class Beside(nn.Module):
    """What the layers make of x, and x, as channels."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.main(x), x), dim=1)


class ResidualConv(nn.Module):
    """Two convolutions, each normalised over all of an item, and a way around them. The `last` ends in its bare convolution."""

    def __init__(self, channels: int, inner: int, out_channels: int, params: DAU1dParams, *, last: bool = False):
        super().__init__()
        conv = partial(nn.Conv1d, kernel_size=params.kernel_size, padding=params.kernel_size // 2, bias=params.conv_bias)
        self.main = nn.Sequential(
            conv(channels, inner),
            nn.GroupNorm(1, inner),
            _activation(inner, params),
            conv(inner, out_channels),
            nn.Identity() if last else nn.GroupNorm(1, out_channels),
            nn.Identity() if last else _activation(out_channels, params),
        )
        self.skip = nn.Identity() if channels == out_channels else nn.Conv1d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


class SelfAttention(nn.Module):
    """x plus what each frame finds in all frames. (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int):
        super().__init__()
        self.num_heads = _heads(channels)
        self.norm = nn.GroupNorm(1, channels)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.out_proj = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv_proj(self.norm(x)).unflatten(1, (3, self.num_heads, -1)).transpose(-1, -2)
        out = F.scaled_dot_product_attention(*heads.unbind(1))
        return x + self.out_proj(out.transpose(-1, -2).flatten(1, 2))


class CubicDownsample(nn.Module):
    """(B, C, T) -> (B, C, T / 2), each channel through the cubic filter, ends reflected."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor(CUBIC))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (3, 3), mode="reflect")
        return F.conv1d(x, _for_each_channel(self.kernel, x), stride=2, groups=x.shape[1])


class CubicUpsample(nn.Module):
    """(B, C, T) -> (B, C, 2 T), the transposed filter at twice its gain, ends reflected."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", 2 * torch.tensor(CUBIC))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (2, 2), mode="reflect")
        return F.conv_transpose1d(x, _for_each_channel(self.kernel, x), stride=2, padding=7, groups=x.shape[1])


def _for_each_channel(kernel: Tensor, x: Tensor) -> Tensor:
    return kernel.to(x.dtype).expand(x.shape[1], 1, -1)


def _downsampler(channels: int, stride: int, *, learned: bool) -> nn.Module:
    if stride == 2 and not learned:
        return CubicDownsample()
    return nn.Conv1d(channels, channels, 2 * stride + 1, stride=stride, padding=stride)


def _upsampler(channels: int, stride: int, *, learned: bool) -> nn.Module:
    if stride == 1:
        return nn.Conv1d(channels, channels, 3, padding=1)
    if not learned:
        return CubicUpsample()
    odd = stride % 2
    return nn.ConvTranspose1d(channels, channels, 2 * stride, stride=stride, padding=stride // 2 + odd, output_padding=odd)


def _attention(channels: int, attends: bool) -> nn.Module:
    return SelfAttention(channels) if attends else nn.Identity()


def _heads(channels: int) -> int:
    return max(1, channels // HEAD_CHANNELS)


def _activation(channels: int, params: DAU1dParams) -> nn.Module:
    return Snake(channels) if params.use_snake else nn.GELU()
