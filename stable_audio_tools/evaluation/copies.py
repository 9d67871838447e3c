"""Parts of training clips in other clips, sample for sample: found wherever they begin, at any level, and under a little noise.

Every window of a clip is compared with the training clips at every frame, as a small log-mel picture, which changes little within a
frame. The most similar places are then laid over each other sample by sample, which tells a copy from what only looks alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.spectrogram import mel_filterbank

from .clip_sets import Clip, Clips
from .embedded import prepared

SAMPLE_RATE = 16000
WINDOW = SAMPLE_RATE  # chosen: a second of one recording is found in no other
QUERY_HOP = WINDOW // 2
FFT, HOP, BANDS = 1024, 320, 24  # of the picture: 64 ms, 20 ms
FRAMES = (WINDOW - FFT) // HOP + 1  # of one window
RANGE = 1e-3  # chosen: 30 dB below a window's loudest band nothing is looked at
SILENT_RMS = 1e-3  # -60 dBFS: silence is like silence everywhere
COPY = 0.9  # chosen: correlation of waveforms; lossy coding stays above, another take of the same notes below
CANDIDATES = 4  # most similar places of a clip that are laid over
BLOCK = 2048  # pictures on each side that are compared at once


@dataclass(frozen=True)
class Match:
    """Where a clip is most like a training clip: from `start_s` and `training_start_s` on, for a second.

    correlation: magnitude, of the waveforms.
    """

    name: str
    start_s: float
    training: str
    training_start_s: float
    correlation: float

    @property
    def is_copy(self) -> bool:
        return self.correlation >= COPY

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "copy": self.is_copy}


def find_copies(sets: Sequence[Clips], training: Clips) -> tuple[list[list[Match]], set[str]]:
    """For each set the best match of each clip that sounds; and the names of the training clips.

    Training clips are walked through once, and their pictures are not kept. A clip shorter than a second is followed by silence.
    """
    searches = [_Search(clips) for clips in sets]
    names = set()
    for place, clip in enumerate(training):
        names.add(clip.name)
        for start, found in _picture_blocks(clip):
            for search in searches:
                search.look_in(found, place, start)
    return [search.matches(training) for search in searches], names


class _Search:
    """The windows of a set of clips, and the most similar place in training for each so far."""

    def __init__(self, clips: Clips):
        self.clips = clips
        rows = [(place, start, window) for place, clip in enumerate(clips) for start, window in _sounding(clip)]
        self.windows = [(place, start) for place, start, _ in rows]
        self.pictures = torch.cat([pictures(_powers(window)) for _, _, window in rows]) if rows else torch.zeros(0, FRAMES * BANDS)
        self.similarity = torch.full((len(rows),), -torch.inf)
        self.where = torch.zeros(len(rows), 2, dtype=torch.long)

    def look_in(self, found: Tensor, place: int, start: int) -> None:
        """found: (N, D) pictures of one training clip, one a frame, the first at sample `start`."""
        parts = zip(self.pictures.split(BLOCK), self.similarity.split(BLOCK), self.where.split(BLOCK), strict=True)
        for wanted, best, where in parts:  # views, so that what is found stays
            similarity, nearest = (wanted @ found.T).max(1)
            nearer = similarity > best
            best[nearer] = similarity[nearer]
            where[nearer] = torch.stack((torch.full_like(nearest, place), start + HOP * nearest), 1)[nearer]

    def matches(self, training: Clips) -> list[Match]:
        by_clip: dict[int, list[int]] = {}
        for row in self.similarity.argsort(descending=True).tolist():
            if self.similarity[row] > -torch.inf:
                by_clip.setdefault(self.windows[row][0], []).append(row)
        found = ([self._match(row, training) for row in rows[:CANDIDATES]] for rows in by_clip.values())
        return [max(candidates, key=lambda match: match.correlation) for candidates in found]

    def _match(self, row: int, training: Clips) -> Match:
        (place, start), (source, source_start) = self.windows[row], self.where[row].tolist()
        clip, trained = self.clips[place], training[source]
        begin = max(0, source_start - 2 * HOP)
        correlation, offset = best_alignment(_mono(clip)[start : start + WINDOW], _mono(trained)[begin : source_start + WINDOW + 2 * HOP])
        return Match(clip.name, start / SAMPLE_RATE, trained.name, (begin + offset) / SAMPLE_RATE, correlation)


def _mono(clip: Clip) -> Tensor:
    """(T,), T at least a window."""
    audio = to_channels(prepared(clip, SAMPLE_RATE), 1)[0]
    return F.pad(audio, (0, max(0, WINDOW - len(audio))))


def _sounding(clip: Clip) -> Iterator[tuple[int, Tensor]]:
    """Each window that is not silent, and the sample at which it begins; the last one ends with the clip."""
    if clip.is_whole:
        audio = _mono(clip)
        last = len(audio) - WINDOW
        for start in sorted({*range(0, last + 1, QUERY_HOP), last}):
            window = audio[start : start + WINDOW]
            if float(window.square().mean().sqrt()) > SILENT_RMS:
                yield start, window


def _picture_blocks(clip: Clip) -> Iterator[tuple[int, Tensor]]:
    """(N, D) pictures at every frame of a clip, a block at a time, and the sample at which the first begins."""
    if clip.is_whole:
        powers = _powers(_mono(clip))
        for first in range(0, len(powers) - FRAMES + 1, BLOCK):
            yield first * HOP, pictures(powers[first : first + BLOCK + FRAMES - 1])


def _powers(audio: Tensor) -> Tensor:
    """(T,) to the mel power of each frame (N, bands)."""
    spectrum = torch.fft.rfft(audio.unfold(0, FFT, HOP) * torch.hann_window(FFT))
    return spectrum.abs().square() @ mel_filterbank(SAMPLE_RATE, FFT, BANDS).T


def pictures(powers: Tensor) -> Tensor:
    """(N, bands) mel power to the unit vectors (N - FRAMES + 1, D) of the pictures that begin at each frame; 0 where nothing varies.

    Logarithms, so that a picture does not depend on its level. Without each band's mean, so that what happens when decides and not timbre.
    """
    windows = powers.unfold(0, FRAMES, 1)
    levels = windows.clamp_min((RANGE * windows.amax((1, 2), keepdim=True)).clamp_min(1e-12)).log10()
    return F.normalize((levels - levels.mean(2, keepdim=True)).flatten(1), dim=1)


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
