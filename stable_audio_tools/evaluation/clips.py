"""What every measurement starts from: one channel, finite samples, and the part of a clip that sounds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ONSET_BLOCK_S = 0.01
ONSET_SHARE = 0.01  # of the loudest block's energy, so 20 dB below it


def finite_clips(audio: Tensor) -> Tensor:
    """(B,) bool: False for a clip with a NaN or an infinity, which every measurement counts as wrong."""
    return torch.isfinite(audio).flatten(1).all(1)


def to_mono(audio: Tensor) -> Tensor:
    """(B, C, T) or (B, T) to (B, T) float32, the mean of the channels; clips that are not finite become zeros.

    Raises:
        ValueError: another number of dimensions, or no samples.
    """
    if audio.ndim not in (2, 3) or audio.shape[-1] == 0:
        raise ValueError(f"audio has shape {tuple(audio.shape)}; expected (B, C, T) or (B, T) with T > 0")
    audio = audio.detach().to("cpu", torch.float32)
    audio = torch.where(finite_clips(audio).reshape(-1, *[1] * (audio.ndim - 1)), audio, 0.0)
    return audio.mean(1) if audio.ndim == 3 else audio


def sounding_part(mono: Tensor, sample_rate: int, longest_s: float) -> Tensor:
    """(B, T) to at most `longest_s` seconds from each clip's first sounding moment, filled up with zeros at the end."""
    onset = _onsets(mono, sample_rate)
    length = min(mono.shape[-1], round(longest_s * sample_rate))
    places = onset[:, None] + torch.arange(length)
    return F.pad(mono, (0, length)).gather(1, places)


def block_energy(mono: Tensor, block: int) -> Tensor:
    """(B, T) to (B, ceil(T / block)) sums of squares."""
    padded = F.pad(mono, (0, -mono.shape[-1] % block))
    return padded.square().unflatten(-1, (-1, block)).sum(-1)


def _onsets(mono: Tensor, sample_rate: int) -> Tensor:
    block = max(1, round(ONSET_BLOCK_S * sample_rate))
    energy = block_energy(mono, block)
    loud = energy > ONSET_SHARE * energy.amax(1, keepdim=True)
    return loud.int().argmax(1) * block


def with_noise(audio: Tensor, snr_db: Tensor | float, generator: torch.Generator) -> Tensor:
    """(B, C, T) plus white noise, each clip at its signal-to-noise ratio, a number or (B,)."""
    noise = torch.randn(audio.shape, generator=generator)
    size = audio.square().mean((1, 2)).sqrt() * 10 ** (-torch.as_tensor(snr_db) / 20)
    return audio + size[:, None, None] * noise
