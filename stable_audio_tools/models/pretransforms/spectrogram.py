"""`log_spectrogram`: normalised log magnitudes of a short-time Fourier transform; the phase is found again by Griffin-Lim.

A latent space without weights and without phase, in which small models learn pitch and timbre within minutes.
B batch, C audio channels, T samples, N = T / hop_length frames, F = n_fft / 2 bins (the one at half the sample rate is left out).
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.exact import at_least_single

from .base import Pretransform, WeightlessPretransformConfig
from .filterbanks import overlap_add

MAX_LOG_AMPLITUDE = 1.0  # chosen: a full-scale sine is 0, so nothing real is above; a model's outlier must not deafen
HANN_TIME_FREQUENCY_RATIO = 0.25645  # gamma / n_fft^2 of the Gaussian nearest to a Hann window, arXiv:1609.00291, table 1


class LogSpectrogramParams(StrictModel):
    """The defaults of floor, mean and std give about zero mean and unit variance on music at -20 dBFS, at any rate and size."""

    channels: PositiveInt = Field(description="audio channels")
    n_fft: PositiveInt = Field(default=512, description="window length, samples")
    hop_length: PositiveInt = Field(default=128, description="samples between frames, best a quarter of n_fft or less")
    floor: float = Field(default=2e-3, gt=0, description="added to amplitudes (1 is a full-scale sine) before the logarithm")
    mean: float | tuple[float, ...] = Field(default=-5.5, description="of the logarithm, subtracted: one number, or one per bin")
    std: float | tuple[float, ...] = Field(default=0.8, description="of the logarithm, divided by: one number, or one per bin")
    iterations: NonNegativeInt = Field(default=32, description="Griffin-Lim steps of decoding")
    momentum: float = Field(default=0.99, ge=0, lt=1, description="of the Griffin-Lim steps; 0 is the plain algorithm")

    @model_validator(mode="after")
    def _frames_tile(self) -> Self:
        if self.n_fft % self.hop_length or self.n_fft < 2 * self.hop_length or self.hop_length % 2:
            message = f"hop_length must be even and go at least twice into n_fft, got n_fft {self.n_fft} and hop_length {self.hop_length}"
            fix = f"best 4 times, such as {max(self.n_fft // 8 * 2, 2)}"
            raise ConfigError([Problem(("hop_length",), message, fix, self.hop_length)])
        return self

    @model_validator(mode="after")
    def _one_number_per_bin(self) -> Self:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) != self.bins:
                message = f"{name} has {len(value)} numbers, but n_fft {self.n_fft} has {self.bins} bins"
                raise ConfigError([Problem((name,), message, f"give {self.bins}, or one")])
        if min(self.std if isinstance(self.std, tuple) else (self.std,)) <= 0:
            least = self.std if isinstance(self.std, float) else min(self.std)
            raise ConfigError([Problem(("std",), f"std must be above 0, got {least}", "give the deviation")])
        return self

    @property
    def bins(self) -> int:
        return self.n_fft // 2


class LogSpectrogramConfig(WeightlessPretransformConfig):
    type: Literal["log_spectrogram"]
    config: LogSpectrogramParams

    @property
    def io_channels(self) -> int:
        return self.config.channels

    @property
    def encoded_channels(self) -> int:
        return self.config.channels * self.config.bins

    @property
    def downsampling_ratio(self) -> int:
        return self.config.hop_length

    def build(self, sample_rate: int) -> LogSpectrogramPretransform:
        return LogSpectrogramPretransform(self.config)


class LogSpectrogramPretransform(Pretransform):
    """Audio (B, C, T) <-> (B, C * F, N): (log(amplitude + floor) - mean) / std, where a full-scale sine has amplitude 1.

    Frame n is centred between samples n * hop and (n + 1) * hop; audio is silence outside 0..T. Decoding draws no random number, so
    equal latents give equal audio, and gradients pass through the magnitudes (not through the search for the phase).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, params: LogSpectrogramParams):
        encoded_channels = params.channels * params.bins
        super().__init__(io_channels=params.channels, encoded_channels=encoded_channels, downsampling_ratio=params.hop_length)
        self.params = params
        for name, value in (("mean", params.mean), ("std", params.std)):
            self.register_buffer(name, torch.tensor(value).expand(params.bins)[:, None].clone(), persistent=False)

    def encode(self, audio: Tensor) -> Tensor:
        self.check_audio(audio)
        precise = at_least_single(audio)  # Fourier transforms and logarithms of small numbers are not for half precision
        stft = STFT(self.params.n_fft, self.params.hop_length, precise)
        amplitudes = stft.forward(precise).abs()[..., :-1].mT * stft.amplitude
        return ((torch.log(amplitudes + self.params.floor) - self.mean) / self.std).flatten(1, 2).to(audio.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        logs = at_least_single(latents).unflatten(1, (self.io_channels, self.params.bins)) * self.std + self.mean
        amplitudes = logs.clamp(math.log(self.params.floor), MAX_LOG_AMPLITUDE).exp() - self.params.floor
        amplitudes = F.pad(amplitudes.mT, (0, 1))
        stft = STFT(self.params.n_fft, self.params.hop_length, amplitudes)
        with torch.no_grad():
            phases = start_phases(torch.log(amplitudes + self.params.floor / 20), stft)
            phases = griffin_lim(amplitudes, phases, stft, self.params.iterations, self.params.momentum)
        return stft.inverse(amplitudes * phases / stft.amplitude).to(latents.dtype)


class STFT:
    """Hann-windowed transform of exactly T / hop frames, and its least-squares inverse; `like` gives device and dtype."""

    def __init__(self, size: int, hop: int, like: Tensor):
        self.size, self.hop, self.pad = size, hop, (size - hop) // 2
        self.window = torch.hann_window(size, device=like.device, dtype=like.dtype)
        self.amplitude = 4 / size  # a sine of amplitude a has magnitude a * sum(window) / 2 = a * size / 4

    def forward(self, audio: Tensor) -> Tensor:
        """(..., T) -> complex (..., N, size / 2 + 1)."""
        frames = F.pad(audio, (self.pad, self.pad)).unfold(-1, self.size, self.hop)
        return torch.fft.rfft(frames * self.window)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Complex (..., N, size / 2 + 1) -> (..., T)."""
        frames = torch.fft.irfft(spectrum, n=self.size) * self.window
        weight = overlap_add(self.window.square().expand(frames.shape[-2], -1), self.hop)
        return (overlap_add(frames, self.hop) / weight.clamp(min=1e-8))[..., self.pad : -self.pad]


def start_phases(logs: Tensor, stft: STFT) -> Tensor:
    """A first guess of the phases from log magnitudes (..., N, F + 1), as complex numbers of length one.

    Along time each bin turns at the frequency of the partial it belongs to. The slope of the logarithm over the bins tells it: on the
    flank of a partial at w0 a nearly Gaussian window gives w0 = w + slope * n_fft / gamma (phase gradients of arXiv:1609.00291).
    At the first frame neighbouring bins fit one pulse in the middle of the frame, moved by up to one hop for the high bins, so that it
    is no click (low-peak phases, Schroeder 1970).
    """
    bins = torch.arange(logs.shape[-1], device=logs.device, dtype=logs.dtype)
    slope = torch.gradient(logs, dim=-1)[0]
    turns = torch.remainder(bins * stft.hop, stft.size) / stft.size  # of the bin's own frequency in one hop; whole ones would cost digits
    offsets = (slope[..., 1:, :] + slope[..., :-1, :]) * (stft.hop / stft.size / HANN_TIME_FREQUENCY_RATIO / 2)
    steps = torch.remainder(2 * math.pi * turns + offsets + math.pi, 2 * math.pi) - math.pi
    first = -math.pi * bins + math.pi * bins.square() / len(bins) * (stft.hop / stft.size)
    phases = torch.cat([first.expand_as(logs[..., :1, :]), steps], dim=-2).cumsum(-2)
    return torch.polar(torch.ones_like(phases), phases)


def griffin_lim(magnitudes: Tensor, phases: Tensor, stft: STFT, iterations: int, momentum: float) -> Tensor:
    """Phases under which the magnitudes are nearly those of a sound; fast Griffin-Lim, Perraudin et al. 2013 (WASPAA), algorithm 2.

    Args:
        magnitudes: (..., N, F + 1).
        phases: complex numbers of length one, same shape: where to begin.

    Returns:
        Like `phases`.
    """
    previous = None
    for _ in range(iterations):
        projected = stft.forward(stft.inverse(magnitudes * phases))
        ahead = projected if previous is None else projected + momentum * (projected - previous)
        phases, previous = ahead / ahead.abs().clamp(min=1e-12), projected
    return phases
