"""SEANet: the convolutional and recurrent encoder and decoder of EnCodec (arXiv:2210.13438, section 3.1).

The encoder is an input convolution, per ratio residual blocks and a strided convolution that doubles the width, an LSTM and an
output convolution; the decoder mirrors it. Any length goes in: convolutions pad so that the last frame is whole.
B batch, C channels, T samples or latent frames.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.nn.conv import WNConv1d, WNConvTranspose1d
from stable_audio_tools.nn.spectral_norm import SNConv1d, SNConvTranspose1d

from .base import BaseDecoderConfig, BaseEncoderConfig

Settings = dict[str, bool | float | str]

ActivationName = Literal[
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish", "PReLU",
    "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold",
]  # fmt: skip
NormName = Literal["none", "weight_norm", "spectral_norm", "layer_norm", "time_group_norm", "time_layer_norm"]

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
NORM_SETTINGS: dict[str, tuple[str, ...]] = {"layer_norm": ("eps", "elementwise_affine", "bias"), "time_group_norm": ("eps", "affine")}
CONVOLUTIONS: dict[str, tuple[type[nn.Conv1d], type[nn.ConvTranspose1d]]] = {
    "weight_norm": (WNConv1d, WNConvTranspose1d),
    "spectral_norm": (SNConv1d, SNConvTranspose1d),
}


class SEANetParams(StrictModel):
    """What encoder and decoder share. The width is `n_filters` next to the audio and doubles at each ratio."""

    channels: PositiveInt = Field(default=1, description="audio channels, or the pretransform's")
    dimension: PositiveInt = Field(default=128, description="channels on the side of the latents")
    n_filters: PositiveInt = Field(default=32, description="width next to the audio")
    n_residual_layers: NonNegativeInt = Field(default=1, description="residual blocks at each ratio")
    activation: ActivationName = Field(default="ELU", description="a class of torch.nn")
    activation_params: Settings = Field(default_factory=dict, description="its arguments; absent ones are torch's defaults")
    norm: NormName = Field(
        default="weight_norm",
        description="of the weights (weight_norm, spectral_norm), or behind each convolution (layer_norm: over channels; "
        "time_group_norm: over channels and time); time_layer_norm: as none, in published models too",
    )
    norm_params: Settings = Field(default_factory=dict, description="arguments of layer_norm or time_group_norm")
    kernel_size: PositiveInt = Field(default=7, description="taps of the first convolution")
    last_kernel_size: PositiveInt = Field(default=7, description="taps of the last convolution")
    residual_kernel_size: PositiveInt = Field(default=3, description="taps of the residual blocks")
    dilation_base: PositiveInt = Field(default=2, description="residual block j has dilation dilation_base ** j")
    causal: bool = Field(default=False, description="outputs depend on the past only: convolutions pad on the left")
    pad_mode: Literal["reflect", "constant", "replicate", "circular"] = Field(default="reflect", description="constant: with zeros")
    true_skip: bool = Field(default=False, description="residual blocks add their input itself, else a 1x1 convolution of it")
    compress: PositiveInt = Field(default=2, description="residual blocks are narrower by this factor inside")
    lstm: NonNegativeInt = Field(default=2, description="LSTM layers next to the latents; 0: none")

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if problems := list(self._problems()):
            raise ConfigError(problems)
        return self

    def _problems(self) -> Iterator[Problem]:
        yield from activation_problems("activation", self.activation, self.activation_params)
        allowed = NORM_SETTINGS.get(self.norm, ())
        for key in sorted(self.norm_params.keys() - set(allowed)):
            fix = f"it has {', '.join(allowed)}" if allowed else "remove it; layer_norm and time_group_norm have settings"
            yield Problem(("norm_params", key), f"norm {self.norm!r} has no setting {key!r}", fix, self.norm_params[key], on_key=True)
        if self.causal and self.norm == "time_group_norm":
            message = "norm 'time_group_norm' averages over all time, but causal is true"
            yield Problem(("norm",), message, 'set "causal": false, or norm to weight_norm or layer_norm', self.norm)
        if self.n_residual_layers and self.compress > self.n_filters:
            message = f"compress {self.compress} leaves no channel of n_filters {self.n_filters}"
            yield Problem(("compress",), message, f"set compress to {self.n_filters} or less", self.compress)


class SEANetEncoderParams(SEANetParams):
    ratios: tuple[PositiveInt, ...] = Field(
        default=(2, 2, 2, 2, 2), description="strides from the audio inwards; their product is the ratio"
    )


class SEANetDecoderParams(SEANetParams):
    ratios: tuple[PositiveInt, ...] = Field(
        default=(8, 5, 4, 2), description="strides from the latents outwards; their product is the ratio"
    )
    final_activation: ActivationName | None = Field(default=None, description="on the audio, such as Tanh")
    final_activation_params: Settings | None = Field(default=None, description="its arguments")
    trim_right_ratio: float = Field(
        default=1.0, ge=0, le=1, description="causal only: share of what a transposed convolution gives too much that is cut at the end"
    )

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        if self.final_activation is not None:
            yield from activation_problems("final_activation", self.final_activation, self.final_activation_params or {})
        elif self.final_activation_params:
            yield Problem(
                ("final_activation_params",), "there is no final_activation to take them", "name one, or remove them", on_key=True
            )
        if self.trim_right_ratio != 1 and not self.causal:
            message = f"trim_right_ratio {self.trim_right_ratio} is for causal models, but causal is false"
            yield Problem(("trim_right_ratio",), message, 'set it to 1.0, or "causal": true', self.trim_right_ratio)


class SEANetEncoderConfig(BaseEncoderConfig):
    in_channels_key, out_channels_key, ratio_key = "channels", "dimension", "ratios"

    type: Literal["seanet"]
    config: SEANetEncoderParams = Field(default_factory=SEANetEncoderParams)

    def make(self) -> SEANetEncoder:
        return SEANetEncoder(self.config)


class SEANetDecoderConfig(BaseDecoderConfig):
    in_channels_key, out_channels_key, ratio_key = "dimension", "channels", "ratios"

    type: Literal["seanet"]
    config: SEANetDecoderParams = Field(default_factory=SEANetDecoderParams)

    def make(self) -> SEANetDecoder:
        return SEANetDecoder(self.config)


class SEANetEncoder(nn.Module):
    """(B, channels, T) -> (B, dimension, frames): each ratio divides the length and rounds up."""

    def __init__(self, params: SEANetEncoderParams):
        super().__init__()
        width = params.n_filters
        layers: list[nn.Module] = [PaddedConv1d(params.channels, width, params.kernel_size, params)]
        for ratio in params.ratios:
            layers += residual_blocks(width, params)
            layers += [activation(params), PaddedConv1d(width, 2 * width, 2 * ratio, params, stride=ratio)]
            width *= 2
        layers += [SkipLSTM(width, params.lstm)] if params.lstm else []
        layers += [activation(params), PaddedConv1d(width, params.dimension, params.last_kernel_size, params)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SEANetDecoder(nn.Module):
    """(B, dimension, T) -> (B, channels, T * prod(ratios))."""

    def __init__(self, params: SEANetDecoderParams):
        super().__init__()
        width = params.n_filters * 2 ** len(params.ratios)
        layers: list[nn.Module] = [PaddedConv1d(params.dimension, width, params.kernel_size, params)]
        layers += [SkipLSTM(width, params.lstm)] if params.lstm else []
        for ratio in params.ratios:
            layers += [activation(params), TrimmedConvTranspose1d(width, width // 2, ratio, params)]
            width //= 2
            layers += residual_blocks(width, params)
        layers += [activation(params), PaddedConv1d(width, params.channels, params.last_kernel_size, params)]
        if params.final_activation is not None:
            layers += [make_activation(params.final_activation, params.final_activation_params or {})]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ResidualBlock(nn.Module):
    """shortcut(x) + conv1x1(act(conv(act(x)))), narrower inside. (B, C, T) -> (B, C, T)."""

    def __init__(self, width: int, dilation: int, params: SEANetParams):
        super().__init__()
        hidden = width // params.compress
        self.block = nn.Sequential(
            activation(params),
            PaddedConv1d(width, hidden, params.residual_kernel_size, params, dilation=dilation),
            activation(params),
            PaddedConv1d(hidden, width, 1, params),
        )
        self.shortcut = nn.Identity() if params.true_skip else PaddedConv1d(width, width, 1, params)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class SkipLSTM(nn.Module):
    """x + lstm(x) along time. (B, C, T) -> (B, C, T)."""

    def __init__(self, width: int, num_layers: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x).permute(1, 2, 0)


class PaddedConv1d(nn.Module):
    """Convolution behind as much padding as makes ceil(T / stride) frames. (B, C, T) -> (B, C', ceil(T / stride)).

    Both sides are padded, the left one more where they differ; only the left one when causal. What completes the last frame goes
    to the right.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, params: SEANetParams, *, stride: int = 1, dilation: int = 1):
        super().__init__()
        kind = CONVOLUTIONS.get(params.norm, (nn.Conv1d, nn.ConvTranspose1d))[0]
        self.conv = with_norm("conv", kind(in_channels, out_channels, kernel_size, stride, dilation=dilation), params)
        self.stride, self.pad_mode = stride, params.pad_mode
        self.overhang = (kernel_size - 1) * dilation + 1 - stride
        self.right = 0 if params.causal else self.overhang // 2

    def forward(self, x: Tensor) -> Tensor:
        completing = -x.shape[-1] % self.stride
        return self.conv(pad(x, self.overhang - self.right, self.right + completing, self.pad_mode))


class TrimmedConvTranspose1d(nn.Module):
    """Transposed convolution of 2 * stride taps, cut to whole frames. (B, C, T) -> (B, C', T * stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, params: SEANetDecoderParams):
        super().__init__()
        kind = CONVOLUTIONS.get(params.norm, (nn.Conv1d, nn.ConvTranspose1d))[1]
        self.convtr = with_norm("convtr", kind(in_channels, out_channels, 2 * stride, stride), params)
        right = math.ceil(stride * params.trim_right_ratio) if params.causal else stride // 2
        self.left, self.stride = stride - right, stride

    def forward(self, x: Tensor) -> Tensor:
        return self.convtr(x)[..., self.left : self.left + x.shape[-1] * self.stride]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


def with_norm(name: str, conv: nn.Conv1d | nn.ConvTranspose1d, params: SEANetParams) -> nn.Sequential:
    """`conv` as child `name`, and the norm behind it as child `norm`."""
    norm: nn.Module = nn.Identity()
    if params.norm == "layer_norm":
        norm = ChannelNorm(conv.out_channels, **params.norm_params)  # type: ignore[arg-type]
    elif params.norm == "time_group_norm":
        norm = nn.GroupNorm(1, conv.out_channels, **params.norm_params)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict([(name, conv), ("norm", norm)]))


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """`F.pad` along time; what is too short to be reflected is first continued with zeros, which do not count as its length."""
    if mode != "reflect":
        return F.pad(x, (left, right), mode)
    length = x.shape[-1]
    lacking = max(0, max(left, right) + 1 - length)
    return F.pad(F.pad(x, (0, lacking)), (left, right), mode)[..., : left + length + right]


def residual_blocks(width: int, params: SEANetParams) -> list[nn.Module]:
    """The residual blocks of a stage, each (B, width, T) -> (B, width, T), of growing dilation."""
    return [ResidualBlock(width, params.dilation_base**index, params) for index in range(params.n_residual_layers)]


def activation(params: SEANetParams) -> nn.Module:
    """A fresh one, as the config names it."""
    return make_activation(params.activation, params.activation_params)


def make_activation(name: str, settings: Mapping[str, bool | float | str]) -> nn.Module:
    """The class of torch.nn called `name`, made with `settings`."""
    return getattr(nn, name)(**settings)


def activation_problems(key: str, name: str, settings: Mapping[str, bool | float | str]) -> Iterator[Problem]:
    """What is wrong with the arguments of an activation, found by trying it; `key` holds its name, `<key>_params` its arguments."""
    path = (f"{key}_params",)
    known = {parameter.name for parameter in inspect.signature(getattr(nn, name)).parameters.values() if parameter.kind in NAMED}
    known -= {"inplace", "device", "dtype"}  # in place, it would overwrite the input that the shortcut around it still needs
    unknown = settings.keys() - known
    for setting in sorted(unknown):
        fix = f"it has {', '.join(sorted(known))}" if known else "remove it"
        yield Problem((*path, setting), f"{name} has no setting {setting!r}", fix, settings[setting], on_key=True)
    if not unknown:
        try:
            make_activation(name, settings).eval()(torch.zeros(1))  # in training RReLU would draw a random number
        except (TypeError, ValueError, RuntimeError) as error:
            message = f"{name} does not work with {value_text(dict(settings))}: {str(error).splitlines()[0]}"
            yield Problem(path, message, f"give it the arguments of torch.nn.{name}", dict(settings))
