"""What of a file is served: all of it, what is left without silence at its ends, or audio that is held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from stable_audio_tools.audio.io import read_part
from stable_audio_tools.audio.resample import resampled_length
from stable_audio_tools.data.scan import AudioFile

BLOCK, LARGEST_BLOCK = 1 << 16, 1 << 22  # frames read at once in search of sound: twice as many each time that there was none


class Stretch(Protocol):
    """Audio of `total` samples at the clips' rate, `seconds` long. `read` gives [start, stop) as (C, stop - start) float32."""

    @property
    def total(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    def read(self, start: int, stop: int) -> Tensor: ...


class FileStretch(NamedTuple):
    """A stretch of a file, read by seeking: samples [first, first + total) of what it is at `sample_rate`."""

    file: AudioFile
    sample_rate: int
    first: int
    total: int
    seconds: float

    @classmethod
    def whole(cls, file: AudioFile, sample_rate: int) -> FileStretch:
        total = resampled_length(file.info.frames, file.info.sample_rate, sample_rate)
        return cls(file, sample_rate, 0, total, file.info.seconds)

    def read(self, start: int, stop: int) -> Tensor:
        """Raises ConfigError where the file cannot be decoded."""
        return read_part(self.file.path, self.file.info, self.sample_rate, self.first + start, self.first + stop)


class HeldStretch(NamedTuple):
    """Audio (C, T) in memory."""

    audio: Tensor
    sample_rate: int

    @property
    def total(self) -> int:
        return self.audio.shape[-1]

    @property
    def seconds(self) -> float:
        return self.total / self.sample_rate

    def read(self, start: int, stop: int) -> Tensor:
        return self.audio[:, start:stop]


def sounding_part(file: AudioFile, sample_rate: int, amplitude: float, *, also_before: bool) -> FileStretch:
    """A file up to its last sample of at least `amplitude` in some channel; `also_before`: and from its first one on.

    Only the silence is read, and a little more. A file that is silent throughout stays whole.

    Raises:
        ConfigError: the file cannot be decoded.
    """
    frames, rate = file.info.frames, file.info.sample_rate
    end = next((start + int(loud[-1]) + 1 for start, loud in _loud_blocks(file, amplitude, backwards=True)), None)
    if end is None:
        return FileStretch.whole(file, sample_rate)
    begin = next(start + int(loud[0]) for start, loud in _loud_blocks(file, amplitude, backwards=False)) if also_before else 0
    total = resampled_length(frames, rate, sample_rate)
    first = min(begin * sample_rate // rate, total - 1)
    last = min(-(-end * sample_rate // rate), total)
    return FileStretch(file, sample_rate, first, last - first, (last - first) / sample_rate)


def _loud_blocks(file: AudioFile, amplitude: float, *, backwards: bool) -> Iterator[tuple[int, Tensor]]:
    """From one end of the file on, the blocks that are not silent: where they start, and their loud frames."""
    total, done, size = file.info.frames, 0, BLOCK
    while done < total:
        size = min(size, total - done)
        start = total - done - size if backwards else done
        block = read_part(file.path, file.info, file.info.sample_rate, start, start + size)
        loud = (block.abs().amax(0) >= amplitude).nonzero()[:, 0]
        if len(loud):
            yield start, loud
        done, size = done + size, min(2 * size, LARGEST_BLOCK)
