"""Items drawn with replacement, for epochs of any length: which ones is a function of the place in the run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch.utils.data import Dataset

from stable_audio_tools.data.draws import below, fraction, hashed
from stable_audio_tools.data.types import ItemKey, Sample


class Resampled(Dataset[Any]):
    """A stream of draws: first a run of items, then one of its items. The loader asks for as many as an epoch takes.

    Args:
        dataset: has `visit`.
        runs: stretches of items, such as those of one tar file; empty ones are never drawn.
        weights: how likely each run is, in any unit.
        epoch_steps: batches of an epoch, on each rank.
    """

    def __init__(self, dataset: Any, runs: Sequence[range], weights: Sequence[float], epoch_steps: int):
        self.dataset, self.epoch_steps = dataset, epoch_steps
        kept = [(run, weight) for run, weight in zip(runs, weights, strict=True) if len(run)]
        self._runs = [run for run, _ in kept]
        self._up_to = [*accumulate(weight for _, weight in kept)]

    def __len__(self) -> int:
        return len(self.dataset)

    def visit(self, key: ItemKey) -> Sample:
        """The draw at place `key.item` of epoch `key.visit`."""
        place = fraction(*key, "run") * self._up_to[-1]
        run = self._runs[min(bisect_right(self._up_to, place), len(self._runs) - 1)]
        item = run[below(len(run), *key, "of the run")]
        return self.dataset.visit(ItemKey(key.seed, hashed(*key, "visit"), item))  # another crop each time that an item is drawn
