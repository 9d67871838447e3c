"""A folder of stored latents as a data set sees it, whatever wrote it: items with a length, metadata, and frames to read.

C channels, Q codebooks, T latent frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stable_audio_tools.data.types import Fault


class NotServableError(Exception):
    """Why a file cannot be served now."""


@dataclass(frozen=True)
class LatentFacts:
    """What all items of a folder have in common.

    channels: C, or Q of tokens. tokens: the items are tokens. distribution: the items are means and deviations, of C each.
    samples_per_frame, sample_rate: how many audio samples at how many Hz a frame stands for; None: the folder does not say.
    sample_size: of the clips that were encoded, in samples; None: whole files, or the folder does not say.
    rounded_seconds: `seconds_start` and `seconds_total` are served as whole seconds, rounded down and up.
    encoder: what made the latents, for messages.
    """

    channels: int
    tokens: bool = False
    distribution: bool = False
    samples_per_frame: int | None = None
    sample_rate: int | None = None
    sample_size: int | None = None
    rounded_seconds: bool = True
    encoder: str = "an unknown encoder"


@dataclass(frozen=True)
class LatentFolder(ABC):
    """The items of a folder, in the order of their names.

    frames, valid: T of each item, and how many of these hold audio; the rest is padding. seconds: how long the audio file is that an
    item is from, where that is known. bad: items that cannot be used, with causes.
    """

    root: str
    facts: LatentFacts
    frames: tuple[int, ...]
    valid: tuple[int, ...]
    seconds: tuple[float | None, ...]
    bad: tuple[Fault, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.frames)

    @abstractmethod
    def name(self, item: int) -> str:
        """Where an item is stored, for messages."""

    @abstractmethod
    def metadata(self, item: int) -> Mapping[str, Any]:
        """What is known about an item.

        Raises:
            NotServableError: it cannot be read any more.
        """

    @abstractmethod
    def read(self, item: int, start: int, stop: int) -> Tensor:
        """Frames of an item: float32 (C, n), int64 (Q, n) of tokens, or (2 C, n), the means first, of a distribution.

        Raises:
            NotServableError: they cannot be read, or are not finite.
        """
