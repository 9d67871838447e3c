"""Audio that a caller gives, at any rate, with any channels and of any length, as a batch that a model takes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.resample import resample

GivenAudio = tuple[int, Tensor]
"""Sample rate in Hz, and audio (T,), (C, T) or (B, C, T)."""


def conformed(given: GivenAudio, sample_rate: int, channels: int, name: str, *, batch_size: int | None = None) -> Tensor:
    """(B, channels, T) float32 on the CPU at `sample_rate` Hz.

    Args:
        name: of the argument, for messages.
        batch_size: items that one clip or as many serve; left out: those given.

    Raises:
        ValueError: it is no audio, is empty, is of another number of items, or its channels cannot be converted.
    """
    rate, audio = given
    audio = audio[(None,) * (3 - audio.ndim)] if audio.ndim in (1, 2) else audio
    count = "" if batch_size is None else f" with B = 1 or {batch_size}"
    if audio.ndim != 3 or (batch_size is not None and audio.shape[0] not in (1, batch_size)):
        raise ValueError(f"{name} has shape {tuple(audio.shape)}, expected (C, T), or (B, C, T){count}")
    if not audio.numel():
        raise ValueError(f"{name} has shape {tuple(audio.shape)}: there is no sample")
    if rate < 1:
        raise ValueError(f"{name} has a rate of {rate}; it is (sample rate in Hz, audio)")
    clips = torch.stack([to_channels(resample(clip.float().cpu(), rate, sample_rate), channels) for clip in audio])
    return clips.expand(batch_size or len(clips), -1, -1)


def cut_or_padded(audio: Tensor, length: int) -> Tensor:
    """(..., T) to (..., length): the end cut off, or silence added."""
    return F.pad(audio[..., :length], (0, max(0, length - audio.shape[-1])))
