"""The training clip that is nearest to each of some clips, in time and memory that do not grow with its square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels

from .clip_sets import Clip, Clips
from .embedded import prepared
from .embedders.base import Embedder
from .windows import COARSE_HOP_S, FINE_HOP_S, WINDOW_S, Windows, best_alignment, window_blocks

BLOCK = 4096  # windows on each side that are compared at once
CANDIDATES = 3  # of a clip's windows, the nearest ones, whose waveforms are compared
COPY = 0.9  # chosen: correlation of waveforms; lossy coding stays above, another take of the same notes below


@dataclass(frozen=True)
class Match:
    """A clip's window and the part of a training clip that it is nearest to.

    start_s, training_start_s: where the window, and that part, begin.
    similarity: cosine of embeddings, standardised over training windows. correlation: of the waveforms, laid over each other best.
    """

    name: str
    start_s: float
    training: str
    training_start_s: float
    similarity: float
    correlation: float

    @property
    def is_copy(self) -> bool:
        return self.correlation >= COPY

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "copy": self.is_copy}


@dataclass(frozen=True)
class Searched:
    """matches: for each set, one for each clip that sounds. training: names of the training clips that sound."""

    matches: list[list[Match]]
    training: set[str]


def nearest_training(embedder: Embedder, sets: Sequence[Clips], training: Clips) -> Searched:
    """Search for the clips of several sets while walking once through the training clips, whose vectors are not kept."""
    blocks = window_blocks(embedder, training, COARSE_HOP_S, BLOCK)
    first = next(blocks, None)
    if first is None:
        return Searched([[] for _ in sets], set())
    mean, deviation = first.vectors.mean(0), first.vectors.std(0, correction=0).clamp_min(1e-6)
    searches = [_Search([*window_blocks(embedder, clips, FINE_HOP_S, BLOCK)], mean, deviation) for clips in sets]
    names: set[str] = set()
    for block in chain((first,), blocks):
        names.update(block.names)
        for search in searches:
            search.look_in(block)
    found = [[_match(embedder, clips, training, tops) for tops in search.tops()] for clips, search in zip(sets, searches, strict=True)]
    return Searched(found, names)


@dataclass(frozen=True)
class _Near:
    """A window and the training window nearest to it: places of clips in their sets, and where the windows begin."""

    place: int
    start_s: float
    training: int
    training_start_s: float
    similarity: float


class _Search:
    """The nearest training window so far of each window of a set."""

    def __init__(self, blocks: list[Windows], mean: Tensor, deviation: Tensor):
        self.blocks, self.mean, self.deviation = blocks, mean, deviation
        self.best = [torch.full((len(block.vectors),), -torch.inf) for block in blocks]
        self.where = [torch.zeros(len(block.vectors), 2, dtype=torch.float64) for block in blocks]

    def look_in(self, training: Windows) -> None:
        vectors = self._directions(training)
        places = torch.stack((training.places.double(), training.starts_s), 1)
        for block, best, where in zip(self.blocks, self.best, self.where, strict=True):
            similarity, nearest = (self._directions(block) @ vectors.T).max(1)
            nearer = similarity > best
            best[nearer], where[nearer] = similarity[nearer], places[nearest[nearer]]

    def _directions(self, windows: Windows) -> Tensor:
        return F.normalize((windows.vectors - self.mean) / self.deviation, dim=1)

    def tops(self) -> list[list[_Near]]:
        """For each clip its windows that are nearest to a training window, the nearest first."""
        by_clip: dict[int, list[_Near]] = {}
        for block, best, where in zip(self.blocks, self.best, self.where, strict=True):
            rows = zip(block.places.tolist(), block.starts_s.tolist(), where.tolist(), best.tolist(), strict=True)
            for place, start_s, (training, training_start_s), similarity in rows:
                by_clip.setdefault(place, []).append(_Near(place, start_s, int(training), training_start_s, similarity))
        return [sorted(rows, key=lambda near: -near.similarity)[:CANDIDATES] for rows in by_clip.values()]


def _match(embedder: Embedder, clips: Clips, training: Clips, tops: list[_Near]) -> Match:
    """The candidate whose waveform is most like its training clip's; the similarity is of the nearest."""
    clip = clips[tops[0].place]
    return max((_laid_over(embedder.sample_rate, clip, training[near.training], near) for near in tops), key=_rank)


def _rank(match: Match) -> tuple[bool, float]:
    return match.is_copy, match.similarity


def _laid_over(sample_rate: int, clip: Clip, training: Clip, near: _Near) -> Match:
    """The window is sought from a window's length before the nearest training window to as much behind it."""
    window = _part(clip, sample_rate, near.start_s, near.start_s + WINDOW_S)
    begin_s = max(0.0, near.training_start_s - WINDOW_S)
    part = _part(training, sample_rate, begin_s, near.training_start_s + 2 * WINDOW_S)
    part = F.pad(part, (0, max(0, len(window) - len(part))))
    correlation, place = best_alignment(window, part)
    return Match(clip.name, near.start_s, training.name, begin_s + place / sample_rate, near.similarity, correlation)


def _part(clip: Clip, sample_rate: int, start_s: float, stop_s: float) -> Tensor:
    """(T,), the mean of the channels."""
    return to_channels(prepared(clip, sample_rate), 1)[0, round(start_s * sample_rate) : round(stop_s * sample_rate)]
