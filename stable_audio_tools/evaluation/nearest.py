"""The training clip that a clip sounds most like, in an embedder's space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .clip_sets import Clips
from .embedders.base import Embedder
from .windows import Windows, window_blocks

BLOCK = 4096  # windows on each side that are compared at once
LEAST_UNIT = 0.1  # chosen: of the mean deviation; a dimension that hardly varies, such as an empty band, must not decide


@dataclass(frozen=True)
class Neighbour:
    """Where a clip is most like a training clip. similarity: cosine of embeddings, standardised over training windows."""

    name: str
    start_s: float
    training: str
    training_start_s: float
    similarity: float

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def nearest_training(embedder: Embedder, sets: Sequence[Clips], training: Clips) -> list[list[Neighbour]]:
    """For each set the nearest neighbour of each clip that sounds.

    Training clips are walked through once, and their vectors are not kept; those of the first block say how dimensions vary.
    """
    blocks = window_blocks(embedder, training, BLOCK)
    first = next(blocks, None)
    if first is None:
        return [[] for _ in sets]
    mean, deviation = first.vectors.mean(0), first.vectors.std(0, correction=0)
    unit = deviation.clamp_min(max(1e-6, LEAST_UNIT * float(deviation.mean())))
    searches = [_Search([*window_blocks(embedder, clips, BLOCK)], mean, unit) for clips in sets]
    for block in chain((first,), blocks):
        for search in searches:
            search.look_in(block)
    return [search.neighbours(clips, training) for clips, search in zip(sets, searches, strict=True)]


class _Search:
    """The nearest training window so far of each window of a set."""

    def __init__(self, blocks: list[Windows], mean: Tensor, unit: Tensor):
        self.blocks, self.mean, self.unit = blocks, mean, unit
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
        return F.normalize((windows.vectors - self.mean) / self.unit, dim=1)

    def neighbours(self, clips: Clips, training: Clips) -> list[Neighbour]:
        tops: dict[int, tuple[float, float, int, float]] = {}
        for block, best, where in zip(self.blocks, self.best, self.where, strict=True):
            for place, start_s, similarity, found in zip(
                block.places.tolist(), block.starts_s.tolist(), best.tolist(), where.tolist(), strict=True
            ):
                if place not in tops or similarity > tops[place][0]:
                    tops[place] = similarity, start_s, int(found[0]), found[1]
        return [
            Neighbour(clips[place].name, start_s, training[source].name, source_start_s, similarity)
            for place, (similarity, start_s, source, source_start_s) in tops.items()
        ]
