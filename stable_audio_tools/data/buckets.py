"""Batches of clips of similar length: how an epoch's order is rearranged for them, and to which lengths they are padded.

A step is the batches of all ranks together. The order of an epoch is rearranged so that every step holds clips of similar
length; it stays one order, so that sharing out to ranks, workers and resuming work as without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.data.draws import hashed, permutation

JITTER = 0.03  # chosen: lengths this close count as equal, so that a clip meets others in the next epoch; costs about 1.5 % of padding


class LengthOptions(StrictModel):
    """What dataset configs say about lengths; a config derives from it, and its data set has `lengths` where `variable_length` is set."""

    variable_length: bool = Field(
        False,
        description="batches of clips of similar length, as long as their longest clip, at most sample_size; "
        "false: every clip is padded to sample_size",
    )


class LengthGrid(NamedTuple):
    """The lengths that batches may have: multiples of `multiple`, from `shortest` on; in samples of audio, or frames of latents."""

    multiple: int = 1
    shortest: int = 1

    def padded(self, length: int) -> int:
        """The shortest possible length of a batch whose longest item has `length`."""
        return -(-max(length, self.shortest) // self.multiple) * self.multiple

    def in_frames(self, samples_per_frame: int) -> LengthGrid:
        """The same for latents of so many audio samples a frame."""
        return LengthGrid(-(-self.multiple // samples_per_frame), -(-self.shortest // samples_per_frame))


ANY_LENGTH = LengthGrid()


def by_length(order: Tensor, lengths: Tensor, step: int, *names: int | str) -> Tensor:
    """The rows of `order`, so that each `step` of them from the start on are of similar length.

    Which rows are left over for the last, incomplete step is what `order` says, not their length: no length is left out more
    often than another. The longest step comes first, so that what does not fit into memory fails at once.

    Args:
        order: (N, 2) visits and items. lengths: (items,) of any unit.
        names: of the random choices, such as seed and epoch; none: rows are sorted by length, which is for evaluation.
    """
    whole = len(order) // step * step
    steps = _sorted(order[:whole], lengths, *names).view(-1, step, 2)
    if names and len(steps):
        steps = steps[torch.cat((torch.zeros(1, dtype=torch.int64), 1 + permutation(len(steps) - 1, *names, "steps")))]
    return torch.cat((steps.flatten(0, 1), _sorted(order[whole:], lengths)))


def _sorted(rows: Tensor, lengths: Tensor, *names: int | str) -> Tensor:
    """Longest first."""
    keys = lengths[rows[:, 1]].double()
    if names:
        keys = keys * (1 + JITTER * torch.rand(len(rows), generator=torch.Generator().manual_seed(hashed(*names, "lengths"))).double())
    return rows[keys.argsort(descending=True, stable=True)]
