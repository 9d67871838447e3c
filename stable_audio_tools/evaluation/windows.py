"""Clips cut into short overlapping windows, each as a vector: to find a part of one clip in another, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .clip_sets import Clip, Clips
from .embedded import prepared
from .embedders.base import Embedder

WINDOW_S = 1.0  # chosen: a second of one recording is found in no other
FINE_HOP_S, COARSE_HOP_S = 0.125, 0.5  # of what is searched for and of what is searched: some pair is at most 1/16 s apart
SILENT_RMS = 1e-3  # -60 dBFS: silence is like silence everywhere
LEVEL_RMS = 0.1  # every window is brought to this level, since a quieter copy is a copy


@dataclass(frozen=True)
class Windows:
    """vectors: (W, D) float32. places: (W,) of each window's clip in its set. starts_s: (W,) where it begins. names: of the clips."""

    vectors: Tensor
    places: Tensor
    starts_s: Tensor
    names: tuple[str, ...]


def window_blocks(embedder: Embedder, clips: Clips, hop_s: float, at_least: int) -> Iterator[Windows]:
    """The windows of all clips, in blocks of `at_least` or up to a clip's windows more, the last one smaller; no block is empty."""
    rows: list[tuple[Tensor, int, float, str]] = []
    for place, clip in enumerate(clips):
        found = sounding_windows(clip, embedder.sample_rate, hop_s)
        rows += [(embedder.embed(audio), place, start_s, clip.name) for audio, start_s in found]
        if len(rows) >= at_least:
            yield _stacked(rows)
            rows = []
    if rows:
        yield _stacked(rows)


def _stacked(rows: list[tuple[Tensor, int, float, str]]) -> Windows:
    vectors, places, starts_s, names = zip(*rows, strict=True)
    return Windows(torch.stack(vectors), torch.tensor(places), torch.tensor(starts_s, dtype=torch.float64), names)


def sounding_windows(clip: Clip, sample_rate: int, hop_s: float) -> Iterator[tuple[Tensor, float]]:
    """Each window (C, T) that is not silent, at one level, and where it begins in seconds; a shorter clip is one window."""
    if not clip.is_whole:
        return
    audio = prepared(clip, sample_rate)
    length = min(audio.shape[-1], round(WINDOW_S * sample_rate))
    for start in range(0, audio.shape[-1] - length + 1, max(1, round(hop_s * sample_rate))):
        window = audio[:, start : start + length]
        rms = float(window.square().mean().sqrt())
        if rms > SILENT_RMS:
            yield window * (LEVEL_RMS / rms), start / sample_rate


def best_alignment(window: Tensor, signal: Tensor) -> tuple[float, int]:
    """Where (T,) is most like a part of (S,), S at least T, up to a gain: the magnitude of the correlation there, and where it begins."""
    window, signal = window.double(), signal.double()
    length, size = len(window), len(signal) + len(window)
    products = torch.fft.irfft(torch.fft.rfft(signal, size) * torch.fft.rfft(window, size).conj(), size)[: len(signal) - length + 1]
    energy = F.pad(signal.square().cumsum(0), (1, 0))
    energies = energy[length:] - energy[:-length]
    # A part with a thousandth of the loudest part's energy is as good as silent, and rounding would decide there.
    scale = (energies.clamp_min(1e-3 * float(energies.max())) * window.square().sum()).clamp_min(1e-20).sqrt()
    correlation = (products / scale).abs()
    place = int(correlation.argmax())
    return float(correlation[place]), place
