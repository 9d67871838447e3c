"""The `audio_dir` dataset: folders of audio files, cropped by seeking, with captions from files beside them.

Item `index` on visit `v` is a function of the seed, `v` and `index`: its crop, and which file takes its place if its own
cannot be read any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from stable_audio_tools.audio.io import peak_level, shown, to_channels
from stable_audio_tools.audio.resample import resampled_length
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.source import Path as Place
from stable_audio_tools.data.buckets import LengthOptions
from stable_audio_tools.data.described import DescribedItem, check_described
from stable_audio_tools.data.draws import below, fraction
from stable_audio_tools.data.latent_folder import NotServableError
from stable_audio_tools.data.levels import SoundOptions
from stable_audio_tools.data.metadata_module import RejectedError, custom_metadata, part_beside
from stable_audio_tools.data.path_fields import FIXED
from stable_audio_tools.data.scan import AudioFile, Limits, Progress, Scan, report, scan_folder
from stable_audio_tools.data.stand_in import serve
from stable_audio_tools.data.stretches import FileStretch, HeldStretch, Stretch, sounding_part
from stable_audio_tools.data.types import ItemKey, Part, Sample, valid_mask

PROBED = 2  # items that a metadata module is tried on before training, chosen
HELD_SAMPLES = 1 << 27  # chosen: of all channels, 25 minutes of stereo; a FLAC of a megabyte may hold hours of silence
PLACES = 8  # starts tried in a file before its crop counts as silent, chosen


class AudioDirItem(DescribedItem):
    """One folder."""

    id: str = Field(min_length=1, description="a name for messages and the metadata key dataset_id")
    path: str = Field(min_length=1, description="folder; everything below it is read, except names that start with a dot")
    file_tags: bool = Field(False, description="tags inside the files are metadata: ID3, Vorbis comments, RIFF INFO, MP4 atoms")
    scan_cache: bool = Field(
        True, description="what was found in the files is kept beside them, or below ~/.cache, and only new and changed ones are looked at"
    )
    weight: float = Field(1.0, gt=0, description="how often an epoch holds each file; 0.5: every other epoch, 2: twice, other crops")


class AudioDirConfig(SoundOptions, LengthOptions):
    """Folders of WAV, FLAC, AIFF, Ogg Vorbis, Opus and MP3."""

    dataset_type: Literal["audio_dir"] = "audio_dir"
    datasets: tuple[AudioDirItem, ...] = Field(min_length=1)
    random_crop: bool = Field(True, description="a new place in every epoch; false: the start of the file")
    drop_last: bool = Field(True, description="leave out what does not fill a training batch, other files in each epoch")
    phase_flip: bool = Field(False, description="turn the polarity of every other clip, at random")
    trim_silence: Literal["none", "end", "both"] = Field(
        "none", description="leave out silence at the end, or at both ends, of files: what is below silence_threshold_db"
    )
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

    @model_validator(mode="after")
    def _trimming_has_a_threshold(self) -> Self:
        if self.trim_silence != "none" and self.silence_threshold_db is None:
            fix = "set it to -60.0, or trim_silence to none"
            raise ConfigError([Problem(("silence_threshold_db",), "trim_silence needs a level below which it is silent", fix)])
        return self

    @property
    def code(self) -> tuple[tuple[Place, str], ...]:
        """Python files that the dataset runs, with their places in the config."""
        files = enumerate(item.custom_metadata_module for item in self.datasets)
        return tuple((("datasets", index, "custom_metadata_module"), file) for index, file in files if file)

    def limits(self, audio_channels: int | None = None) -> Limits:
        return Limits(self.min_seconds, self.silence_threshold_db, audio_channels)

    def scans(self, audio_channels: int | None = None, *, thorough: bool = False, progress: Progress | None = None) -> list[Scan]:
        """What each dataset holds.

        Args:
            audio_channels: what files must be turned into. thorough: read all of every file. progress: as `scan_folder` takes it.

        Raises:
            ConfigError: a folder, or its table of captions, cannot be read.
        """
        limits = self.limits(audio_channels)
        return [_scanned(item, limits, thorough, progress) for item in self.datasets]

    def build(self, *, sample_size: int, sample_rate: int, audio_channels: int = 2) -> AudioDirDataset:
        """Look over the folders.

        Raises:
            ConfigError: a folder that cannot be read or holds nothing usable.
        """
        if problems := [*self.sound_problems(sample_rate, audio_channels)]:
            raise ConfigError(problems, "dataset config")
        scans = self.scans(audio_channels)
        for scan in scans:
            report(scan)
        check_described(self.datasets, [((file.relpath, file.metadata) for file in scan.files) for scan in scans])
        return AudioDirDataset(self, scans, sample_size, sample_rate, audio_channels)


def _scanned(item: AudioDirItem, limits: Limits, thorough: bool, progress: Progress | None) -> Scan:
    """What a folder holds, with what the config says about its files."""
    scan = scan_folder(item.path, limits, thorough=thorough, tags=item.file_tags, keep=item.scan_cache, progress=progress)
    return scan if item.path_pattern is None and not item.captions_per_line else scan.described(item.described)


class AudioDirDataset(Dataset[Any]):
    """Clips of `sample_size` samples, or of at most that many with `variable_length`.

    Files of one folder come after another, in the order of their names.

    Metadata: what stands beside the file; `prompt`, where the folder has captions; `path`, `relpath`, `dataset_id`;
    `sample_rate` (of the clip); `timestamps`, the clip's start and end as fractions of the file; `seconds_start` and
    `seconds_total`, where the clip starts and how long the file is. Silence that the options leave out counts as if it had
    never been in the file.

    Args:
        scans: what each folder of `config` holds.
    """

    def __init__(self, config: AudioDirConfig, scans: list[Scan], sample_size: int, sample_rate: int, audio_channels: int):
        self.config, self.scans = config, scans
        self._limits = config.limits(audio_channels)
        self.sample_size, self.sample_rate, self.audio_channels = sample_size, sample_rate, audio_channels
        self.parts = tuple(Part(len(scan.files), item.weight) for scan, item in zip(scans, config.datasets, strict=True))
        self.lengths = self._lengths() if config.variable_length else None
        self._captioned = tuple(scan.uncaptioned < len(scan.files) for scan in scans)

    def _lengths(self) -> Tensor:
        """(items,) int64: samples of each item, before silence is left out."""
        infos = (info for scan in self.scans for info in scan.infos())
        totals = (resampled_length(info.frames, info.sample_rate, self.sample_rate) for info in infos)
        return torch.tensor([min(total, self.sample_size) for total in totals])

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
        return serve(key, len(self), lambda index, attempt: self._attempt(index, key, attempt), self.name)

    @property
    def always(self) -> frozenset[str]:
        """Metadata that every item has."""
        prompted = zip(self._captioned, self.config.datasets, strict=True)
        return frozenset(FIXED) | ({"prompt"} if all(captioned or item.prompts.templates for captioned, item in prompted) else set())

    def stored_metadata(self, *, run_code: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name and metadata of all items, but for what depends on the crop; where a module makes some, of a few items or none.

        Args:
            run_code: serve a few items of each dataset that has a metadata module.
        """
        first = 0
        for part, (item, captioned) in enumerate(zip(self.config.datasets, self._captioned, strict=True)):
            length = self.parts[part].length
            if item.custom_metadata_module is None:
                caption = {"prompt": ""} if captioned or item.prompts.templates else {}
                yield from ((name, {**caption, **metadata}) for name, metadata in self._stored(part))
            elif run_code:
                yield from ((self.name(index), self[index].metadata) for index in range(first, first + min(length, PROBED)))
            first += length

    def _stored(self, part: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name and metadata of the items of a dataset, as far as they are known without reading them."""
        return ((file.relpath, file.metadata) for file in self.scans[part].files)

    def name(self, index: int) -> str:
        return shown(self._file(index)[1].path)

    def _attempt(self, index: int, key: ItemKey, attempt: int) -> Sample:
        part, file = self._file(index)
        return self._clip(part, file, key, attempt)

    def _file(self, index: int) -> tuple[int, AudioFile]:
        for number, scan in enumerate(self.scans):
            if index < len(scan.files):
                return number, scan.files[index]
            index -= len(scan.files)
        raise AssertionError("the index is within the length")

    def _clip(self, part: int, file: AudioFile, key: ItemKey, attempt: int) -> Sample:
        begun = perf_counter()
        stretch = self._stretch(file)
        audio, start, factor = self._audible(stretch, (*key, attempt))
        length = audio.shape[-1]
        if length < self.sample_size and not self.config.variable_length:
            audio = F.pad(audio, (0, self.sample_size - length))
        item = self.config.datasets[part]
        metadata = item.prompts.drawn(self._metadata(part, file, start, stretch), *key, attempt)
        if item.custom_metadata_module:
            facts = {"padding_mask": valid_mask(length, audio.shape[-1]), "load_time": perf_counter() - begun}
            metadata = self._custom(item.custom_metadata_module, metadata, facts, audio, (start, factor))
        return Sample(audio, metadata, length)

    def _stretch(self, file: AudioFile) -> Stretch:
        """What is left of a file without the silence that the options leave out."""
        config, stretch = self.config, FileStretch.whole(file, self.sample_rate)
        try:
            if config.trim_silence != "none" and config.silence_threshold_db is not None:
                amplitude = 10 ** (config.silence_threshold_db / 20)
                stretch = sounding_part(file, self.sample_rate, amplitude, also_before=config.trim_silence == "both")
            if not config.remove_silence:
                return stretch
            if stretch.total * file.info.channels > HELD_SAMPLES:
                cause = f"{stretch.seconds / 60:.0f} minutes are too long for remove_silence, which holds whole files in memory"
                raise NotServableError(f"{cause}; cut the file into parts, or use trim_silence")
            return HeldStretch(config.shortened(stretch.read(0, stretch.total), self.sample_rate), self.sample_rate)
        except ConfigError as error:
            raise NotServableError(error.problems[0].message) from None

    def _audible(self, stretch: Stretch, names: tuple[int, ...]) -> tuple[Tensor, int, float]:
        """A crop that is not silent, named by `names`; where it starts, in samples of the clip's rate; and what it was multiplied by."""
        moves = self.config.random_crop and stretch.total > self.sample_size
        for place in range(PLACES if moves else 1):
            start = below(stretch.total - self.sample_size + 1, *names, "start", place) if moves else 0
            audio, peak = self._crop(stretch, start)
            if not self._limits.silent(peak):
                audio, factor = self._varied(audio, peak, names)
                return audio, start, factor
        raise NotServableError(f"the crop is silent, the last one tried at {start / self.sample_rate:.2f} s")

    def _crop(self, stretch: Stretch, start: int) -> tuple[Tensor, float]:
        """(C, T) and the peak level."""
        try:
            part = stretch.read(start, min(start + self.sample_size, stretch.total))
        except ConfigError as error:
            raise NotServableError(error.problems[0].message) from None
        audio = to_channels(part, self.audio_channels)
        peak = peak_level(audio)
        if not math.isfinite(peak):
            raise NotServableError(f"NaN or infinite samples after {start / self.sample_rate:.2f} s")
        return audio, peak

    def _varied(self, audio: Tensor, peak: float, names: tuple[int, ...]) -> tuple[Tensor, float]:
        """At the level and with the polarity of this visit, in [-1, 1], which is what models give and MP3 and resampling may overshoot.

        And the factor between the two, up to that limit.
        """
        factor = 1.0
        if self.config.volume_norm:
            audio = self.config.levelled(audio, self.sample_rate, fraction(*names, "level"))
            before, peak = peak, peak_level(audio)
            factor = peak / before if before else 1.0
        audio = audio.clamp(-1, 1) if peak > 1 else audio
        return (-audio, -factor) if self.config.phase_flip and below(2, *names, "flip") else (audio, factor)

    def _metadata(self, part: int, file: AudioFile, start: int, stretch: Stretch) -> dict[str, Any]:
        seconds_start, seconds_total, total = start / self.sample_rate, stretch.seconds, stretch.total
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

    def _custom(
        self, module: str, metadata: Mapping[str, Any], facts: Mapping[str, Any], audio: Tensor, crop: tuple[int, float]
    ) -> dict[str, Any]:
        """The metadata with what the user's code says.

        Args:
            facts: what the code is told beside the metadata. crop: the clip's first sample, and what it was multiplied by.
        """
        try:
            answer = custom_metadata(module, {**metadata, **facts}, audio)
        except RejectedError as error:
            raise NotServableError(str(error)) from None
        if answer.replacement is not None:
            raise ConfigError("__replace__ is for stored latents; this dataset is of audio", module)
        try:
            beside = {name: self._beside(sound, audio.shape[-1], *crop) for name, sound in answer.audio.items()}
        except ValueError as error:
            raise ConfigError(f"__audio__ of {shown(str(metadata['path']))}: {error}", module) from None
        return {**metadata, **answer.metadata, **beside}

    def _beside(self, sound: Tensor, size: int, start: int, factor: float) -> Tensor:
        """Another recording, treated as the clip was; one of a clip's length is taken to be made of the clip."""
        whole = sound.shape[-1] > size
        if whole and (self.config.trim_silence != "none" or self.config.remove_silence):
            raise ValueError("trim_silence and remove_silence move the clip, so a recording of the whole file does not fit; set them off")
        return part_beside(sound * factor if whole else sound, self.audio_channels, start, size)
