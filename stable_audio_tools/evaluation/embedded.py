"""Sets of clips as vectors: each clip brought to what the embedder expects, and those left out that cannot be heard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.loudness import loudness_lufs
from stable_audio_tools.audio.resample import resample

from .clip_sets import Clip, Clips
from .embedders.base import Embedder


@dataclass(frozen=True)
class Embedded:
    """vectors: (N, D) float32 of the clips that can be measured. places: of these in their set. left_out: clips empty or not finite."""

    vectors: Tensor
    places: tuple[int, ...]
    left_out: int


def embed_clips(embedder: Embedder, clips: Clips, loudness: float | None = None) -> Embedded:
    """The vector of each clip, one clip after the other.

    Args:
        loudness: LUFS that each clip is brought to first; None: as it is.
    """
    vectors, places = [], []
    for place, clip in enumerate(clips):
        if clip.is_whole:
            vectors.append(embedder.embed(prepared(clip, embedder.sample_rate, loudness)))
            places.append(place)
    return Embedded(torch.stack(vectors) if vectors else torch.zeros(0, 1), tuple(places), len(clips) - len(places))


def prepared(clip: Clip, sample_rate: int, loudness: float | None = None) -> Tensor:
    """(C, T) at `sample_rate`, and as loud as wanted; silence stays silence."""
    audio = clip.audio.detach().to("cpu", torch.float32)
    if loudness is not None:
        # The meter knows the places of two channels; others are taken together.
        present = loudness_lufs(audio if len(audio) <= 2 else to_channels(audio, 1), clip.sample_rate)
        audio = audio * (10 ** ((loudness - present) / 20) if math.isfinite(present) else 1.0)
    return audio if clip.sample_rate == sample_rate else resample(audio, clip.sample_rate, sample_rate)


def loudness_rule(loudness: float | None) -> Mapping[str, Any]:
    """What recipes say of `loudness`."""
    return {"loudness": "as it is" if loudness is None else f"each clip at {loudness:g} LUFS"}
