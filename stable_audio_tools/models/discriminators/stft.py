"""The multi-scale STFT discriminator of EnCodec: one convolutional network per window length, on complex spectra (arXiv:2210.13438).

Module names and the indices in the lists are file format. B batch, C audio channels, T samples; inside, images of frames x bins.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.conv import WNConv2d
from stable_audio_tools.nn.exact import FixedBuffers, at_least_single

from .base import GAMES, LOSS_TYPE, BaseDiscriminatorConfig, HeadedDiscriminator, LossType, Verdict, in_precision_of

SMALLEST_SCALE = 1e-3  # of a layer's activations, where feature distances are relative to it
ACTIVATIONS = Literal["LeakyReLU", "ReLU", "ELU", "GELU", "SiLU", "Tanh"]
Pair = tuple[PositiveInt, PositiveInt]


class EncodecDiscriminatorParams(StrictModel):
    """Scales, and the network each of them has."""

    filters: PositiveInt = Field(description="channels of the first layer")
    n_ffts: tuple[PositiveInt, ...] = Field((1024, 2048, 512), min_length=1, description="transform lengths, one network each")
    hop_lengths: tuple[PositiveInt, ...] = Field((256, 512, 128), description="samples between frames")
    win_lengths: tuple[PositiveInt, ...] = Field((1024, 2048, 512), description="Hann window lengths")
    out_channels: PositiveInt = Field(1, description="scores per frame and bin")
    max_filters: PositiveInt = Field(1024, description="layers are never wider than this")
    filters_scale: PositiveInt = Field(1, description="growth of the width per dilated layer")
    kernel_size: Pair = Field((3, 9), description="over frames and bins")
    dilations: tuple[PositiveInt, ...] = Field((1, 2, 4), description="over frames, one layer each")
    stride: Pair = Field((1, 1), description="of the dilated layers, over frames and bins")
    normalized: bool = Field(True, description="divide spectra by the window's energy")
    activation: ACTIVATIONS = Field("LeakyReLU", description="a class of torch.nn")
    activation_params: dict[str, float | bool | str] | None = Field(None, description="its arguments; default: slope 0.2 of LeakyReLU")
    spec_scale_pow: float = Field(0.0, description="spectra are multiplied by their magnitude to this power")
    normalize_losses: bool = Field(False, description="feature distances relative to the activations")
    loss_type: LossType = Field("hinge", description=LOSS_TYPE)

    @model_validator(mode="after")
    def _scales_are_complete(self) -> Self:
        problems = [
            Problem((name,), f"{len(values)} entries for {len(self.n_ffts)} n_ffts", "give one per scale")
            for name, values in (("hop_lengths", self.hop_lengths), ("win_lengths", self.win_lengths))
            if len(values) != len(self.n_ffts)
        ]
        problems += [
            Problem(("win_lengths", index), f"the window is longer than the transform of {n_fft}", f"at most {n_fft}", window)
            for index, (n_fft, window) in enumerate(zip(self.n_ffts, self.win_lengths, strict=False))
            if window > n_fft
        ]
        if problems:
            raise ConfigError(problems)
        return self

    @model_validator(mode="after")
    def _activation_exists(self) -> Self:
        try:
            self.build_activation()
        except TypeError as error:
            fix = f"see torch.nn.{self.activation}"
            raise ConfigError([Problem(("activation_params",), str(error).rpartition("() ")[2], fix)]) from None
        return self

    def build_activation(self) -> nn.Module:
        default = {"negative_slope": 0.2} if self.activation == "LeakyReLU" else {}
        return getattr(nn, self.activation)(**(default if self.activation_params is None else self.activation_params))


class EncodecDiscriminatorConfig(BaseDiscriminatorConfig):
    """EnCodec's multi-scale STFT discriminator."""

    type: Literal["encodec"]
    config: EncodecDiscriminatorParams

    @property
    def min_samples(self) -> int:
        return max(self.config.n_ffts)

    def build(self, sample_rate: int, channels: int) -> EncodecDiscriminator:
        return EncodecDiscriminator(self.config, channels)


class EncodecDiscriminator(HeadedDiscriminator):
    """All scales behind the discriminator seam."""

    def __init__(self, params: EncodecDiscriminatorParams, channels: int):
        super().__init__(GAMES[params.loss_type], relative_to=SMALLEST_SCALE if params.normalize_losses else None)
        self.discriminators = MultiScaleSTFT(params, channels)

    def forward(self, audio: Tensor) -> Verdict:
        verdicts = [scale(audio) for scale in self.discriminators.discriminators]
        return [scores for scores, _ in verdicts], [features for _, features in verdicts]


class MultiScaleSTFT(nn.Module):
    """Holds one network per scale; a level of its own because published keys have it."""

    def __init__(self, params: EncodecDiscriminatorParams, channels: int):
        super().__init__()
        scales = zip(params.n_ffts, params.hop_lengths, params.win_lengths, strict=True)
        self.discriminators = nn.ModuleList(ScaleDiscriminator(params, channels, *scale) for scale in scales)


class ScaleDiscriminator(nn.Module):
    """Audio (B, C, T) to scores (B, out_channels, frames, bins) and the activations of each layer, at one window length."""

    def __init__(self, params: EncodecDiscriminatorParams, channels: int, n_fft: int, hop_length: int, win_length: int):
        super().__init__()
        self.spec_scale_pow = params.spec_scale_pow
        self.activation = params.build_activation()
        self.spec_transform = ComplexSpectrogram(n_fft, hop_length, win_length, normalized=params.normalized)
        widths = [min(params.filters * params.filters_scale**i, params.max_filters) for i in range(len(params.dilations) + 2)]
        square = (params.kernel_size[0],) * 2
        convs = [_same_conv(2 * channels, widths[0], params.kernel_size)]
        for i, dilation in enumerate(params.dilations):
            convs.append(_same_conv(widths[i], widths[i + 1], params.kernel_size, stride=params.stride, dilation=(dilation, 1)))
        convs.append(_same_conv(widths[-2], widths[-1], square))
        self.convs = nn.ModuleList(convs)
        self.conv_post = _same_conv(widths[-1], params.out_channels, square)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = self.spec_transform(audio)
        if self.spec_scale_pow:
            spectrum = spectrum * (spectrum.abs() + 1e-6) ** self.spec_scale_pow
        x = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)
        x, features = in_precision_of(self, x), []
        for conv in self.convs:
            x = self.activation(conv(x))
            features.append(x)
        return self.conv_post(x), features


class ComplexSpectrogram(FixedBuffers):
    """(B, C, T) to complex (B, C, bins, frames): Hann windows that lie wholly inside the audio."""

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int, win_length: int, *, normalized: bool):
        super().__init__()
        self.n_fft, self.hop_length, self.normalized = n_fft, hop_length, normalized
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, audio: Tensor) -> Tensor:
        if audio.shape[-1] < self.n_fft:
            raise ValueError(f"audio of {audio.shape[-1]} samples is shorter than the discriminator's transform of {self.n_fft}")
        audio = at_least_single(audio)  # there is no half-precision transform
        window = self.window.to(audio.dtype)
        flat = audio.flatten(0, 1)
        spectrum = torch.stft(flat, self.n_fft, self.hop_length, len(window), window, center=False, return_complex=True)
        if self.normalized:
            spectrum = spectrum / window.square().sum().sqrt()
        return spectrum.unflatten(0, audio.shape[:2])


def _same_conv(width_in: int, width_out: int, kernel: Pair, *, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> NormedConv:
    """A convolution that keeps frames and bins where its stride is 1."""
    padding = tuple((size - 1) * step // 2 for size, step in zip(kernel, dilation, strict=True))
    return NormedConv(width_in, width_out, kernel, stride=stride, dilation=dilation, padding=padding)


class NormedConv(nn.Module):
    """A weight-normalised convolution under the name `conv`, as published keys have it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()
        self.conv = WNConv2d(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
