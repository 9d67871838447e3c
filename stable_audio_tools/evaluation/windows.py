"""Clips cut into overlapping windows of a second, each as a vector, to compare parts of clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for

from .clip_sets import Clip, Clips
from .embedded import prepared
from .embedders.base import Embedder

WINDOW_S, HOP_S = 1.0, 0.5
SILENT_RMS = 1e-3  # -60 dBFS: silence is like silence everywhere
LEVEL_RMS = 0.1  # every window is brought to this level, since a quieter sound is no other sound
MASK_RMS = 0.003  # then noise 30 dB below it is added: what is so far down makes it no other sound either


@dataclass(frozen=True)
class Windows:
    """vectors: (W, D) float32. places: (W,) of each window's clip in its set. starts_s: (W,) where it begins."""

    vectors: Tensor
    places: Tensor
    starts_s: Tensor


def window_blocks(embedder: Embedder, clips: Clips, at_least: int) -> Iterator[Windows]:
    """The windows of all clips, in blocks of `at_least` or up to a clip's windows more, the last one smaller; no block is empty."""
    rows: list[tuple[Tensor, int, float]] = []
    for place, clip in enumerate(clips):
        rows += [(embedder.embed(audio), place, start_s) for start_s, audio in sounding_windows(clip, embedder.sample_rate)]
        if len(rows) >= at_least:
            yield _stacked(rows)
            rows = []
    if rows:
        yield _stacked(rows)


def _stacked(rows: list[tuple[Tensor, int, float]]) -> Windows:
    vectors, places, starts_s = zip(*rows, strict=True)
    return Windows(torch.stack(vectors), torch.tensor(places), torch.tensor(starts_s, dtype=torch.float64))


def sounding_windows(clip: Clip, sample_rate: int) -> Iterator[tuple[float, Tensor]]:
    """Where each window that is not silent begins, in seconds, and its (C, T) at one level over faint noise.

    A clip that is shorter than a window is one window. The noise is the same for all windows.
    """
    if not clip.is_whole:
        return
    audio = prepared(clip, sample_rate)
    length = min(audio.shape[-1], round(WINDOW_S * sample_rate))
    mask = MASK_RMS * torch.randn(1, length, generator=generator_for(0))
    for start in range(0, audio.shape[-1] - length + 1, max(1, round(HOP_S * sample_rate))):
        window = audio[:, start : start + length]
        rms = float(window.square().mean().sqrt())
        if rms > SILENT_RMS:
            yield start / sample_rate, window * (LEVEL_RMS / rms) + mask
