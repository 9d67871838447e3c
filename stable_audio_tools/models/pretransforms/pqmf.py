"""Pseudo quadrature mirror filters: audio as `num_bands` critically sampled frequency bands, with nearly exact reconstruction.

A cosine-modulated filter bank (Nguyen 1994, "Near-perfect-reconstruction pseudo-QMF banks", IEEE Trans. Signal Processing 42(1)),
as RAVE uses it (arXiv:2111.05011). Its prototype is a Kaiser-windowed lowpass whose cutoff alone is searched for (Lin and
Vaidyanathan 1998, "A Kaiser window approach for the design of prototype filters of cosine modulated filterbanks").
B batch, C audio channels, M bands, T samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.antialias import kaiser_beta
from stable_audio_tools.nn.exact import FixedBuffers, in_full_precision

from .base import Pretransform, WeightlessPretransformConfig

SEARCH_TOLERANCE = 1e-4  # of the cutoff and of the error; the published filters come from a search that stops there
SEARCH_STEPS = 200


class PQMFParams(StrictModel):
    attenuation: float = Field(100, ge=30, le=200, description="of what is outside a band, in dB; 80 to 120 is usual")
    num_bands: int = Field(16, ge=2, description="a power of 2; also the ratio")
    channels: PositiveInt = Field(1, description="audio channels")

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.num_bands & (self.num_bands - 1):
            below = 1 << self.num_bands.bit_length() - 1
            message = f"num_bands must be a power of 2, got {self.num_bands}"
            raise ConfigError([Problem(("num_bands",), message, f"choose {below} or {2 * below}", self.num_bands)])
        return self


class PQMFConfig(WeightlessPretransformConfig):
    type: Literal["pqmf"]
    config: PQMFParams = Field(default_factory=PQMFParams)

    @property
    def io_channels(self) -> int:
        return self.config.channels

    @property
    def encoded_channels(self) -> int:
        return self.config.channels * self.config.num_bands

    @property
    def downsampling_ratio(self) -> int:
        return self.config.num_bands

    def build(self, sample_rate: int) -> PQMFPretransform:
        return PQMFPretransform(self.config)


class PQMFPretransform(Pretransform):
    """Audio (B, C, T) <-> bands (B, C * M, T / M); channel c * M + k is band k of audio channel c, low to high.

    Reconstruction is near perfect: with 80 to 120 dB of attenuation the error lies 54 dB or more below the audio up to 32 bands, 50 dB
    at 64 and 40 dB beyond; with 60 dB it is 45 dB, with 30 dB 25 dB. That is away from the ends: a filter reaches some 12 frames
    (at 100 dB) to either side, and audio outside 0..T counts as silence, so the first and last few frames come back damaged.
    """

    def __init__(self, params: PQMFParams):
        encoded_channels = params.channels * params.num_bands
        super().__init__(io_channels=params.channels, encoded_channels=encoded_channels, downsampling_ratio=params.num_bands)
        self.pqmf = PQMF(params.num_bands, attenuation=params.attenuation)

    def encode(self, audio: Tensor) -> Tensor:
        self.check_audio(audio)
        return in_full_precision(self.pqmf.analyse, audio.flatten(0, 1)).unflatten(0, audio.shape[:2]).flatten(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        bands = latents.unflatten(1, (self.io_channels, self.downsampling_ratio))
        return in_full_precision(self.pqmf.synthesise, bands.flatten(0, 1)).unflatten(0, bands.shape[:2])


class PQMF(FixedBuffers):
    """Signals (N, T) <-> bands (N, M, T / M).

    prototype: (taps,) the lowpass. filter_bank: (M, L) the M filters, L a power of 2, which is all that is used.
    """

    prototype: Tensor
    filter_bank: Tensor

    def __init__(self, num_bands: int, *, attenuation: float):
        super().__init__()
        prototype = design_prototype(num_bands, attenuation)
        self.register_buffer("filter_bank", torch.tensor(modulate(prototype, num_bands), dtype=torch.float32))
        self.register_buffer("prototype", torch.tensor(prototype, dtype=torch.float32))

    def analyse(self, signal: Tensor) -> Tensor:
        filters = self._polyphase(signal)
        frames = signal.unflatten(-1, (-1, filters.shape[0])).mT
        return _flip_signs(F.conv1d(frames, filters, padding=filters.shape[-1] // 2)[..., :-1])

    def synthesise(self, bands: Tensor) -> Tensor:
        """The transpose of `analyse`, times M."""
        filters = self._polyphase(bands)
        num_bands, start = filters.shape[0], filters.shape[-1] // 2
        frames = F.conv_transpose1d(_flip_signs(bands), filters)[..., start : start + bands.shape[-1]]
        return frames.mT.flatten(-2) * num_bands

    def _polyphase(self, like: Tensor) -> Tensor:
        """(M, M, L / M): the taps of each band's filter, by the sample of a frame that they meet."""
        return self.filter_bank.to(like.dtype).unflatten(-1, (-1, self.filter_bank.shape[0])).mT


def _flip_signs(bands: Tensor) -> Tensor:
    """Every second frame of every second band negated: puts the mirrored spectrum of odd bands the right way round."""
    bands = bands.clone()
    bands[..., 1::2, ::2] *= -1
    return bands


def modulate(prototype: np.ndarray, num_bands: int) -> np.ndarray:
    """The prototype, (taps,) odd, moved to the middle of each band: (M, L), zeros around it up to a power of 2."""
    half = len(prototype) // 2
    band, time = np.arange(num_bands)[:, None], np.arange(-half, half + 1)
    phase = (-1.0) ** band * math.pi / 4
    filters = 2 * prototype * np.cos((2 * band + 1) * math.pi / (2 * num_bands) * time + phase)
    missing = (1 << (len(prototype) - 1).bit_length()) - len(prototype)
    return np.pad(filters, ((0, 0), (missing // 2, missing - missing // 2)))


def design_prototype(num_bands: int, attenuation: float) -> np.ndarray:
    """(taps,) float64: the Kaiser lowpass whose cutoff makes the bank reconstruct best."""

    @functools.cache
    def error(cutoff: float) -> float:
        return reconstruction_error(kaiser_lowpass(cutoff, attenuation), num_bands)

    return kaiser_lowpass(minimise(error, 1 / num_bands), attenuation)


def kaiser_lowpass(cutoff: float, attenuation: float) -> np.ndarray:
    """A windowed sinc of odd length; the transition is as wide as the pass band.

    Length and shape are Kaiser's formulas (Oppenheim and Schafer, "Discrete-Time Signal Processing", 7.5.3).

    Args:
        cutoff: in radians per sample.
        attenuation: of the stop band, in dB.
    """
    taps = math.ceil((attenuation - 7.95) / (2.285 * cutoff) + 1)
    time = np.arange(-(taps // 2), taps // 2 + 1)
    return cutoff / math.pi * np.sinc(cutoff / math.pi * time) * np.kaiser(len(time), kaiser_beta(attenuation))


def reconstruction_error(prototype: np.ndarray, num_bands: int) -> float:
    """How far the prototype is from one whose autocorrelation vanishes at all multiples of 2 M, as exact reconstruction needs it.

    Infinite where the prototype is too short for any of them.
    """
    taps = len(prototype)
    overlaps = (prototype[lag:] @ prototype[: taps - lag] for lag in range(2 * num_bands, taps, 2 * num_bands))
    return max((abs(float(overlap)) for overlap in overlaps), default=math.inf)


def minimise(function: Callable[[float], float], start: float) -> float:
    """A local minimum near `start` > 0, by the simplex search in one dimension (Nelder and Mead 1965).

    `function` may jump, as ours does where the number of taps changes, so a search by intervals would end elsewhere.
    """
    best, worst = sorted((start, 1.05 * start), key=function)
    for _ in range(SEARCH_STEPS):
        if abs(best - worst) <= SEARCH_TOLERANCE and function(worst) - function(best) <= SEARCH_TOLERANCE:
            break
        best, worst = sorted((best, _better_than_worst(function, best, worst)), key=function)
    return best


def _better_than_worst(function: Callable[[float], float], best: float, worst: float) -> float:
    """The point that replaces the worse of two: beyond the better one where that helps, else halfway to it."""
    step = best - worst
    if function(best + step) < function(best):
        return min(best + step, best + 2 * step, key=function)
    if function(best + step) < function(worst) and function(best + step / 2) <= function(best + step):
        return best + step / 2
    return best - step / 2
