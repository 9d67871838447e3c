"""The `audio_dir` dataset: folders of audio files, cropped by seeking, with captions from files beside them.

Item `index` on visit `v` is a function of the seed, `v` and `index`: its crop, and which file takes its place if its own
cannot be read any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from stable_audio_tools.audio.io import peak_level, read_part, shown, to_channels
from stable_audio_tools.audio.resample import resampled_length
from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.source import Path as Place
from stable_audio_tools.data.draws import below
from stable_audio_tools.data.metadata_module import RejectedError, custom_metadata
from stable_audio_tools.data.scan import AudioFile, Limits, Scan, report, scan_folder
from stable_audio_tools.data.types import Fault, ItemKey, Part, Sample, valid_mask

PLACES = 8  # starts tried in a file before its crop counts as silent, chosen
FILES = 16  # files tried for an item before the dataset counts as gone, chosen


class AudioDirItem(StrictModel):
    """One folder."""

    id: str = Field(min_length=1, description="a name for messages and the metadata key dataset_id")
    path: str = Field(min_length=1, description="folder; everything below it is read, except names that start with a dot")
    custom_metadata_module: str | None = Field(
        None, description="Python file with get_custom_metadata(info, audio) -> dict; runs only with --allow-code"
    )
    weight: float = Field(1.0, gt=0, description="how often an epoch holds each file; 0.5: every other epoch, 2: twice, other crops")


class AudioDirConfig(StrictModel):
    """Folders of WAV, FLAC, AIFF, Ogg Vorbis, Opus and MP3."""

    dataset_type: Literal["audio_dir"] = "audio_dir"
    datasets: tuple[AudioDirItem, ...] = Field(min_length=1)
    random_crop: bool = Field(True, description="a new place in every epoch; false: the start of the file")
    drop_last: bool = Field(True, description="leave out what does not fill a training batch, other files in each epoch")
    phase_flip: bool = Field(False, description="turn the polarity of every other clip, at random")
    silence_threshold_db: float | None = Field(
        -60.0, lt=0, description="files and crops with no sample above it, in dB of full scale, are not served; null: they are"
    )
    min_seconds: float = Field(0.02, gt=0, description="shorter files are not served")
    exact_seconds: bool = Field(
        False,
        description="seconds_start and seconds_total as exact numbers; false: whole seconds, rounded down and up, as conditioners expect",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [item.id for item in self.datasets]
        twice = [index for index, name in enumerate(names) if name in names[:index]]
        if twice:
            raise ConfigError([Problem(("datasets", i, "id"), "another dataset has this id", "give each its own", names[i]) for i in twice])
        return self

    @property
    def code(self) -> tuple[tuple[Place, str], ...]:
        """Python files that the dataset runs, with their places in the config."""
        files = enumerate(item.custom_metadata_module for item in self.datasets)
        return tuple((("datasets", index, "custom_metadata_module"), file) for index, file in files if file)

    def limits(self, audio_channels: int | None = None) -> Limits:
        return Limits(self.min_seconds, self.silence_threshold_db, audio_channels)

    def build(self, *, sample_size: int, sample_rate: int, audio_channels: int = 2) -> AudioDirDataset:
        """Look over the folders.

        Raises:
            ConfigError: a folder that cannot be read or holds nothing usable.
        """
        scans = [scan_folder(item.path, self.limits(audio_channels)) for item in self.datasets]
        for scan in scans:
            report(scan)
        return AudioDirDataset(self, scans, sample_size, sample_rate, audio_channels)


class AudioDirDataset(Dataset[Any]):
    """Clips of `sample_size` samples; files of one folder after another, in the order of their names.

    Metadata: what stands beside the file; `prompt`, where the folder has captions; `path`, `relpath`, `dataset_id`;
    `sample_rate` (of the clip); `timestamps`, the clip's start and end as fractions of the file; `seconds_start` and
    `seconds_total`, where the clip starts and how long the file is.

    Args:
        scans: what each folder of `config` holds.
    """

    def __init__(self, config: AudioDirConfig, scans: list[Scan], sample_size: int, sample_rate: int, audio_channels: int):
        self.config, self.scans = config, scans
        self._limits = config.limits(audio_channels)
        self.sample_size, self.sample_rate, self.audio_channels = sample_size, sample_rate, audio_channels
        self.parts = tuple(Part(len(scan.files), item.weight) for scan, item in zip(scans, config.datasets, strict=True))
        self._captioned = tuple(scan.uncaptioned < len(scan.files) for scan in scans)

    def __len__(self) -> int:
        return sum(part.length for part in self.parts)

    def __getitem__(self, index: int) -> Sample:
        """Item `index` as on its first visit with seed 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.visit(ItemKey(0, 0, index))

    def visit(self, key: ItemKey) -> Sample:
        """The item named by `key`; another one, named by the same key, while its file cannot be served.

        Raises:
            ConfigError: file after file cannot be served.
        """
        faults: list[Fault] = []
        for attempt, index in enumerate(self._candidates(key)):
            part, file = self._file(index)
            try:
                return self._clip(part, file, key, attempt)._replace(faults=tuple(faults))
            except _NotServableError as error:
                faults.append(Fault(shown(file.path), str(error)))
        first = [f"{fault.path}: {fault.cause}" for fault in faults[:4]]
        raise ConfigError("\n".join([f"{len(faults)} files in a row cannot be served; the first causes:", *first]), "dataset")

    def _candidates(self, key: ItemKey) -> Iterator[int]:
        yield key.item
        for attempt in range(1, FILES):
            yield below(len(self), *key, "instead", attempt)

    def _file(self, index: int) -> tuple[int, AudioFile]:
        for number, scan in enumerate(self.scans):
            if index < len(scan.files):
                return number, scan.files[index]
            index -= len(scan.files)
        raise AssertionError("the index is within the length")

    def _clip(self, part: int, file: AudioFile, key: ItemKey, attempt: int) -> Sample:
        total = resampled_length(file.info.frames, file.info.sample_rate, self.sample_rate)
        audio, start = self._audible(file, total, (*key, attempt))
        length = audio.shape[-1]
        audio = F.pad(audio, (0, self.sample_size - length)) if length < self.sample_size else audio
        metadata = self._metadata(part, file, start, total)
        module = self.config.datasets[part].custom_metadata_module
        if module:
            metadata |= self._custom(module, metadata, audio, length)
        return Sample(audio, metadata, length)

    def _audible(self, file: AudioFile, total: int, names: tuple[int, ...]) -> tuple[Tensor, int]:
        """A crop that is not silent, named by `names`, and where it starts, in samples of the clip's rate."""
        moves = self.config.random_crop and total > self.sample_size
        for place in range(PLACES if moves else 1):
            start = below(total - self.sample_size + 1, *names, "start", place) if moves else 0
            audio, peak = self._crop(file, start, min(start + self.sample_size, total))
            if not self._limits.silent(peak):
                flip = self.config.phase_flip and below(2, *names, "flip")
                return (-audio if flip else audio), start
        raise _NotServableError(f"the crop is silent, the last one tried at {start / self.sample_rate:.2f} s")

    def _crop(self, file: AudioFile, start: int, stop: int) -> tuple[Tensor, float]:
        """(C, T) in [-1, 1], which is what models give and what MP3 and resampling may overshoot; and the peak level."""
        try:
            audio = to_channels(read_part(file.path, file.info, self.sample_rate, start, stop), self.audio_channels)
        except ConfigError as error:
            raise _NotServableError(error.problems[0].message) from None
        peak = peak_level(audio)
        if not math.isfinite(peak):
            raise _NotServableError(f"NaN or infinite samples after {start / self.sample_rate:.2f} s")
        return (audio.clamp(-1, 1) if peak > 1 else audio), peak

    def _metadata(self, part: int, file: AudioFile, start: int, total: int) -> dict[str, Any]:
        seconds_start, seconds_total = start / self.sample_rate, file.info.seconds
        caption = {"prompt": ""} if self._captioned[part] else {}
        return {
            **caption,
            **file.metadata,
            "path": file.path,
            "relpath": file.relpath,
            "dataset_id": self.config.datasets[part].id,
            "sample_rate": self.sample_rate,
            "timestamps": (start / total, min(start + self.sample_size, total) / total),
            "seconds_start": seconds_start if self.config.exact_seconds else math.floor(seconds_start),
            "seconds_total": seconds_total if self.config.exact_seconds else math.ceil(seconds_total),
        }

    def _custom(self, module: str, metadata: Mapping[str, Any], audio: Tensor, length: int) -> dict[str, Any]:
        try:
            return custom_metadata(module, {**metadata, "padding_mask": valid_mask(length, self.sample_size)}, audio)
        except RejectedError as error:
            raise _NotServableError(str(error)) from None


class _NotServableError(Exception):
    """Why a file cannot be served now."""
