"""Epochs of any length, of items drawn with replacement: which ones is a function of the seed, the epoch and the place in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.data.draws import hashed

BLOCK = 4096  # draws of one generator, so that an epoch begins alike whatever its length
VISITS = 1 << 40  # of an epoch at most; each draw is a visit of its own, with crops of its own


class Draws:
    """A stream of draws: first a run of items, then one of its items, each as likely.

    Args:
        runs: stretches of items, such as those of one tar file; empty ones are never drawn.
        weights: how likely each run is, in any unit.
        epoch_steps: batches of an epoch, on each rank.
    """

    def __init__(self, runs: Sequence[range], weights: Sequence[float], epoch_steps: int):
        kept = [(run, weight) for run, weight in zip(runs, weights, strict=True) if len(run)]
        self.epoch_steps = epoch_steps
        self._starts = torch.tensor([run.start for run, _ in kept])
        self._lengths = torch.tensor([len(run) for run, _ in kept])
        self._up_to = torch.tensor([weight for _, weight in kept], dtype=torch.float64).cumsum(0)

    def order(self, seed: int, epoch: int, items: int) -> Tensor:
        """(items, 2) int64: visit and index of each, as in `order.epoch_order`."""
        blocks = [self._block(seed, epoch, block) for block in range(-(-items // BLOCK))]
        visits = torch.arange(items) + epoch * VISITS
        return torch.stack((visits, torch.cat(blocks)[:items]), 1)

    def _block(self, seed: int, epoch: int, block: int) -> Tensor:
        generator = torch.Generator().manual_seed(hashed(seed, "draws", epoch, block))
        which, place = torch.rand(2, BLOCK, dtype=torch.float64, generator=generator)
        runs = torch.searchsorted(self._up_to, which * self._up_to[-1], right=True).clamp(max=len(self._up_to) - 1)
        return self._starts[runs] + (place * self._lengths[runs]).long()
