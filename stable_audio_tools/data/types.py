"""What the data layer passes around: the name of an item, one item, one batch, and how items become a batch.

Between processes a batch carries the number of real samples of each item; `Batch.unpack`, in the training process, turns it
into what the public loader yields, with a `padding_mask` in each metadata dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from stable_audio_tools.data.buckets import LengthGrid
from stable_audio_tools.data.shared_memory import can_share, stacked_in_shared_memory


class ItemKey(NamedTuple):
    """Names what to serve: number `item` of the data set, for the `visit`-th time (its number of earlier visits).

    Whatever is random about the item, such as its crop, is a function of these three numbers.
    """

    seed: int
    visit: int
    item: int


class Part(NamedTuple):
    """A run of consecutive items of a data set; an epoch holds `weight` times its length of them."""

    length: int
    weight: float = 1.0


class Fault(NamedTuple):
    """A file that could not be served, and why."""

    path: str
    cause: str


class Sample(NamedTuple):
    """One item.

    audio: (C, T) float32. metadata: what conditioners read.
    valid_length: real samples at the start, the rest is padding; None: all are real.
    faults: files that should have been served and could not.
    """

    audio: Tensor
    metadata: Mapping[str, Any]
    valid_length: int | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Batch:
    """What crosses the worker boundary: audio (B, C, T), B metadata dicts, B numbers of real samples, and faults met."""

    audio: Tensor
    metadata: tuple[Mapping[str, Any], ...]
    valid_lengths: tuple[int, ...]
    faults: tuple[Fault, ...] = ()

    def pin_memory(self) -> Batch:
        """Called by torch's loader, so that the copy to the GPU need not wait."""
        return Batch(self.audio.pin_memory(), self.metadata, self.valid_lengths, self.faults)

    def unpack(self) -> tuple[Tensor, tuple[dict[str, Any], ...]]:
        """(audio, metadata) with a `padding_mask` (T,) bool, True where audio is real; items of one length share theirs."""
        masks = {length: valid_mask(length, self.audio.shape[-1]) for length in set(self.valid_lengths)}
        items = zip(self.metadata, self.valid_lengths, strict=True)
        return self.audio, tuple({**item, "padding_mask": masks[length]} for item, length in items)


def valid_mask(valid_length: int, length: int) -> Tensor:
    """(length,) bool, True for the first `valid_length`."""
    mask = torch.zeros(length, dtype=torch.bool)
    mask[:valid_length] = True
    return mask


def collate(samples: Sequence[Sample], grid: LengthGrid | None = None) -> Batch:
    """Stack items of one shape; with `grid`, of any lengths, padded with zeros to the next length that it allows."""
    sounds = [sample.audio for sample in samples]
    longest = max(sound.shape[-1] for sound in sounds)
    if shapes := {tuple(sound.shape) for sound in sounds if grid is None} - {tuple(sounds[0].shape)}:
        raise ValueError(f"items of a batch have shapes {tuple(sounds[0].shape)} and {shapes.pop()}")
    length = longest if grid is None else grid.padded(longest)
    stacked = stacked_in_shared_memory(sounds, length) if can_share() else _stacked(sounds, length)
    lengths = tuple(sample.audio.shape[-1] if sample.valid_length is None else sample.valid_length for sample in samples)
    faults = tuple(fault for sample in samples for fault in sample.faults)
    return Batch(stacked, tuple(sample.metadata for sample in samples), lengths, faults)


def _stacked(sounds: Sequence[Tensor], length: int) -> Tensor:
    """(..., T) each to (B, ..., length), padded with zeros."""
    return torch.stack([F.pad(sound, (0, length - sound.shape[-1])) for sound in sounds])


def _unheard(item: int) -> None:
    """Where nobody asks which item is made."""


def fetch(dataset: Dataset[Any], keys: Sequence[ItemKey], begin: Callable[[int], None] = _unheard) -> list[Sample]:
    """The items named by `keys`.

    A data set whose items depend on the visit has `visit(key) -> Sample`, and `ahead(keys)` if it is faster when it knows what is asked
    for next. Any other map-style one will do: items are
    `Sample`s or `(audio, metadata)`, and one that makes many at once has torch's `__getitems__(indices)`. With
    `name(index) -> str` it says where an item is, for messages.

    Args:
        begin: told the number of each item before it is made; of items made or fetched at once, the first one's.
    """
    if hasattr(dataset, "ahead"):
        begin(keys[0].item)
        dataset.ahead(keys)
    if hasattr(dataset, "visit"):
        return [dataset.visit(key) for key in _announced(keys, begin)]
    if hasattr(dataset, "__getitems__"):
        begin(keys[0].item)
        items = dataset.__getitems__([key.item for key in keys])
    else:
        items = [dataset[key.item] for key in _announced(keys, begin)]
    return [Sample(*item) for item in items]


def _announced(keys: Sequence[ItemKey], begin: Callable[[int], None]) -> Iterator[ItemKey]:
    for key in keys:
        begin(key.item)
        yield key


def name_of(dataset: Dataset[Any], item: int) -> str:
    """Where an item is, for messages."""
    return str(dataset.name(item)) if hasattr(dataset, "name") else "which has no name"
