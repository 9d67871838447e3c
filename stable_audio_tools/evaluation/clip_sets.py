"""Sets of clips to be measured: in memory, or files that are read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

from stable_audio_tools.audio.io import load_audio


@dataclass(frozen=True)
class Clip:
    """audio: (C, T) float32 on the CPU. name: a path or another name to find it again by. sample_rate: Hz."""

    audio: Tensor
    sample_rate: int
    name: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it can be measured: it has samples, and all are finite."""
        return self.audio.numel() > 0 and bool(self.audio.isfinite().all())


Clips = Sequence[Clip]
"""May be walked through more than once, and may make its clips anew each time."""


class AudioFiles(Sequence[Clip]):
    """Files as clips, each read when it is asked for, at its own rate and with its own channels.

    Args:
        paths: of the files.
        seconds: only so much of each file's beginning; None: all of it.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], seconds: float | None = None):
        self.paths, self.seconds = [os.fspath(path) for path in paths], seconds

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> AudioFiles: ...
    def __getitem__(self, index: int | slice) -> Clip | AudioFiles:
        """
        Raises:
            ConfigError: the file cannot be read.
        """
        if isinstance(index, slice):
            return AudioFiles(self.paths[index], self.seconds)
        audio, rate = load_audio(self.paths[index])
        return Clip(audio if self.seconds is None else audio[:, : round(self.seconds * rate)], rate, self.paths[index])
