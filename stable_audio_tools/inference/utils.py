"""Upstream's names for making given audio what a model takes, which published scripts import; the work is done in `given_audio`."""

from __future__ import annotations

import torch
from torch import Tensor

from stable_audio_tools.audio.io import to_channels

from .given_audio import conformed, cut_or_padded


def prepare_audio(
    audio: Tensor, in_sr: int, target_sr: int, target_length: int, target_channels: int, device: str | torch.device
) -> Tensor:
    """Audio (T,), (C, T) or (B, C, T) at `in_sr` Hz as (B, target_channels, target_length) at `target_sr` Hz on a device.

    Raises:
        ValueError: it is no audio, or its channels cannot be converted.
    """
    return cut_or_padded(conformed((in_sr, audio), target_sr, target_channels, "audio"), target_length).to(device)


def set_audio_channels(audio: Tensor, target_channels: int) -> Tensor:
    """(B, T) or (B, C, T) with `target_channels` channels; see `audio.io.to_channels`."""
    clips = audio[:, None] if audio.ndim == 2 else audio
    return torch.stack([to_channels(clip, target_channels) for clip in clips])
