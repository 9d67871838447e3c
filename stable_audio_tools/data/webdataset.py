"""The `webdataset` dataset (`wds`, `s3`): tar files of audio, or of latents, in a folder or in a bucket.

Items are reached through an index of each tar file (`data.shards`), in any order. Item `index` on visit `v` is therefore, as
everywhere, a function of the seed, `v` and `index`, whatever the number of workers and ranks, and a run goes on exactly where it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.source import Path as Place
from stable_audio_tools.data.audio_dir import AudioDirConfig, AudioDirDataset
from stable_audio_tools.data.described import DescribedItem, check_described
from stable_audio_tools.data.latent_tars import LATENTS, LatentTars, latent_tars
from stable_audio_tools.data.levels import idle_settings
from stable_audio_tools.data.objects import SCHEME, LocalStore, S3Store, Store
from stable_audio_tools.data.pre_encoded import PreEncodedConfig, PreEncodedDataset, PreEncodedItem
from stable_audio_tools.data.range_cache import RangeCache, default_folder
from stable_audio_tools.data.resampled import Draws
from stable_audio_tools.data.scan import AudioFile, Progress, Scan
from stable_audio_tools.data.shards import AUDIO, Item, Shards, open_shards, report
from stable_audio_tools.data.stand_in import serve
from stable_audio_tools.data.stretches import Stretch
from stable_audio_tools.data.types import ItemKey, Part, Sample
from stable_audio_tools.data.unpacked import Unpacked, descriptions, scan_shards, unpacked

INDEX_LIMIT = 4 << 30  # bytes of indices that are kept, chosen; 300 bytes an item
GIGABYTE = 10**9
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
OF_AUDIO = (
    "phase_flip",
    "trim_silence",
    "silence_threshold_db",
    "min_seconds",
    "remove_silence",
    "silence_threshold",
    "max_silence_duration",
    "volume_norm",
    "volume_norm_param",
    "volume_norm_max_gain_db",
)
OF_AUDIO_ITEMS = ("path_pattern", "captions_per_line")


class WebDatasetItem(DescribedItem):
    """Tar files of one kind: in a folder, or below a prefix of S3."""

    id: str = Field(min_length=1, description="a name for messages and the metadata key dataset_id")
    path: str | None = Field(
        None, min_length=1, description="folder of tar files, one of them, or a pattern: shards/{000..099}.tar, shards/train-*.tar"
    )
    s3_path: str | None = Field(None, min_length=1, description="s3://bucket/prefix of tar files, one of them, or a pattern")
    profile: str | None = Field(None, description="profile of the AWS settings for s3_path; default: the default one")
    anonymous: bool = Field(False, description="read s3_path without credentials: a public bucket")
    weight: float = Field(
        1.0, gt=0, description="how often an epoch holds each item, or, with resampled_shards, how likely each tar file is drawn"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.s3_path is None):
            message = "no place of the data" if self.path is None else "path and s3_path are two places"
            raise ConfigError([Problem((), message, "give path or s3_path")])
        if self.s3_path is None:
            idle = [key for key, value in (("profile", self.profile), ("anonymous", self.anonymous or None)) if value is not None]
            problems = [Problem((key,), "has no effect without s3_path", "remove it", on_key=True) for key in idle]
            if self.path is not None and "://" in self.path:
                problems.append(Problem(("path",), "a place on this machine is expected", "s3:// goes into s3_path", self.path))
        else:
            problems = self._bucket_problems(self.s3_path)
        if problems:
            raise ConfigError(problems)
        return self

    def _bucket_problems(self, s3_path: str) -> list[Problem]:
        bucket = s3_path.removeprefix(SCHEME).partition("/")[0]
        if not s3_path.startswith(SCHEME) or not BUCKET.fullmatch(bucket):
            return [Problem(("s3_path",), "expected s3://bucket/prefix", "a folder on this machine goes into path", s3_path)]
        if self.anonymous and self.profile is not None:
            return [Problem(("profile",), "has no effect with anonymous", "remove one of them", self.profile, on_key=True)]
        return []

    def idle_for_latents(self, place: Place) -> Iterator[Problem]:
        """Settings that are for audio."""
        for key in OF_AUDIO_ITEMS:
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                yield Problem((*place, key), "has no effect with pre_encoded", "remove it", on_key=True)


class WebDatasetConfig(AudioDirConfig):
    """Tar files of audio, or of latents, with text and JSON files of the same names beside them; settings of audio as in audio_dir."""

    dataset_type: Literal["webdataset", "wds", "s3"]  # type: ignore[assignment]  # another member of the family
    datasets: tuple[WebDatasetItem, ...] = Field(min_length=1)  # type: ignore[assignment]
    resampled_shards: bool = Field(
        True, description="an epoch is epoch_steps batches of items drawn with replacement, each tar file as likely; false: every item once"
    )
    epoch_steps: PositiveInt = Field(2000, description="batches of an epoch on each rank, with resampled_shards")
    pre_encoded: bool = Field(False, description="the tar files hold latents, as .npy with a .json")
    latent_crop_length: PositiveInt | None = Field(None, description="frames of a clip of latents; default: the longest item's")
    samples_per_frame: PositiveInt | None = Field(
        None, description="audio samples of a frame of latents: by it, a crop's seconds_start is known"
    )
    cache_dir: str | None = Field(
        None, description="folder for indices and for what was read from S3, shared by all processes; default: ~/.cache"
    )
    cache_gigabytes: NonNegativeFloat = Field(20.0, description="what was read from S3 is kept up to this size; 0: nothing")
    retry_seconds: PositiveFloat = Field(300.0, description="how long S3 may fail to answer before the run ends")

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        switches = {"pre_encoded": ("latent_crop_length", "samples_per_frame"), "resampled_shards": ("epoch_steps",)}
        problems = [*idle_settings(self, switches)]
        if self.variable_length:
            message, fix = "lengths inside tar files are not known before they are read", "remove it"
            problems.append(Problem(("variable_length",), message, fix, on_key=True))
        fields = type(self).model_fields
        if self.pre_encoded:
            idle = [key for key in OF_AUDIO if getattr(self, key) != fields[key].default]
            problems += [Problem((key,), "has no effect with pre_encoded", "remove it", on_key=True) for key in idle]
            problems += [problem for index, item in enumerate(self.datasets) for problem in item.idle_for_latents(("datasets", index))]
        if not any(item.s3_path for item in self.datasets):
            idle = [key for key in ("cache_gigabytes", "retry_seconds") if getattr(self, key) != fields[key].default]
            problems += [Problem((key,), "has no effect without an s3_path", "remove it", on_key=True) for key in idle]
        if problems:
            raise ConfigError(problems)
        return self

    def shards(self) -> tuple[Shards, ...]:
        """The tar files of each dataset, looked over.

        Raises:
            ConfigError: a place that cannot be read or holds no tar file.
        """
        kind, indices = LATENTS if self.pre_encoded else AUDIO, RangeCache(self._cache() / "indices", INDEX_LIMIT)
        return tuple(open_shards(self._store(item), kind, indices) for item in self.datasets)

    def scans(self, audio_channels: int | None = None, *, thorough: bool = False, progress: Progress | None = None) -> list[Scan]:
        """What each dataset holds; unpacks every item."""
        limits, pairs = self.limits(audio_channels), zip(self.shards(), self.datasets, strict=True)
        return [scan_shards(one, item, limits, thorough=thorough, progress=progress) for one, item in pairs]

    def _cache(self) -> Path:
        return default_folder() if self.cache_dir is None else Path(self.cache_dir).expanduser()

    def _store(self, item: WebDatasetItem) -> Store:
        if item.path is not None:
            return LocalStore(item.path)
        cache = RangeCache(self._cache() / "items", round(self.cache_gigabytes * GIGABYTE))
        return S3Store(item.s3_path or "", item.profile, item.anonymous, self.retry_seconds, cache)

    def build(self, *, sample_size: int, sample_rate: int, audio_channels: int = 2) -> Any:
        """Read the indices, or make them.

        Raises:
            ConfigError: a place that cannot be read or holds nothing usable.
        """
        if problems := [*self.sound_problems(sample_rate, audio_channels)]:
            raise ConfigError(problems, "dataset config")
        shards = self.shards()
        for one in shards:
            report(one)
        if self.pre_encoded:
            return self._latents(shards, sample_size, sample_rate)
        check_described(self.datasets, [descriptions(one, item) for one, item in zip(shards, self.datasets, strict=True)])
        return ShardDataset(self, shards, sample_size, sample_rate, audio_channels)

    def _latents(self, shards: tuple[Shards, ...], sample_size: int, sample_rate: int) -> ShardedLatents:
        folders = tuple(latent_tars(one) for one in shards)
        crop = self.latent_crop_length
        if self.random_crop and crop and not self.samples_per_frame and any(valid > crop for folder in folders for valid in folder.valid):
            fix = "set it to the encoder's downsampling ratio, or random_crop to false"
            message = "tar files do not say how many samples a frame has, so a crop's seconds_start is not known"
            raise ConfigError([Problem(("samples_per_frame",), message, fix)], "dataset config")
        config = PreEncodedConfig(
            dataset_type="pre_encoded",
            datasets=tuple(self._as_folder(item) for item in self.datasets),
            latent_crop_length=crop,
            random_crop=self.random_crop,
            samples_per_frame=self.samples_per_frame,
            exact_seconds=self.exact_seconds,
            drop_last=self.drop_last,
        )
        return ShardedLatents(config, folders, sample_size, sample_rate)

    def _as_folder(self, item: WebDatasetItem) -> PreEncodedItem:
        place = item.path or item.s3_path or ""
        module = item.custom_metadata_module
        return PreEncodedItem(id=item.id, path=place, custom_metadata_module=module, prompts=item.prompts, weight=item.weight)

    def draws(self, dataset: ShardDataset | ShardedLatents) -> Draws | None:
        """What training epochs are made of, where that is not each item once."""
        if not self.resampled_shards:
            return None
        runs = dataset.runs()
        weights = [item.weight for item, found in zip(self.datasets, runs, strict=True) for _ in found]
        return Draws([run for found in runs for run in found], weights, self.epoch_steps)


class ShardDataset(AudioDirDataset):
    """Clips of `sample_size` samples of the audio in tar files; items of one dataset after another.

    Metadata as in `AudioDirDataset`; `path` is the tar file's with the member's name behind it, `relpath` the member's name.
    """

    def __init__(self, config: WebDatasetConfig, shards: tuple[Shards, ...], sample_size: int, sample_rate: int, audio_channels: int):
        self.config, self.shards = config, shards
        self._limits = config.limits(audio_channels)
        self.sample_size, self.sample_rate, self.audio_channels = sample_size, sample_rate, audio_channels
        self.parts = tuple(Part(len(one), item.weight) for one, item in zip(shards, config.datasets, strict=True))
        self.lengths = None
        self._captioned = tuple(one.captioned > 0 for one in shards)

    def _stored(self, part: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return descriptions(self.shards[part], self.config.datasets[part])

    def runs(self) -> list[list[range]]:
        """The items of each tar file of each dataset."""
        return _runs([one.firsts for one in self.shards])

    def ahead(self, keys: Sequence[ItemKey]) -> None:
        """Fetch what `keys` name; see `Shards.ahead`."""
        _ahead(self.shards, keys)

    def visit(self, key: ItemKey) -> Sample:
        return serve(key, len(self), lambda index, attempt: self._unpacked_clip(index, key, attempt), self.name)

    def _place(self, index: int) -> tuple[int, Item]:
        for number, one in enumerate(self.shards):
            if index < len(one):
                return number, one.item(index)
            index -= len(one)
        raise AssertionError("the index is within the length")

    def name(self, index: int) -> str:
        return self._place(index)[1].name

    def _unpacked_clip(self, index: int, key: ItemKey, attempt: int) -> Sample:
        number, item = self._place(index)
        with unpacked(item, self.config.datasets[number], self.shards[number].content(item), self._limits) as file:
            return self._clip(number, file, key, attempt)

    def _metadata(self, part: int, file: AudioFile, start: int, stretch: Stretch) -> dict[str, Any]:
        assert isinstance(file, Unpacked)
        return {**super()._metadata(part, file, start, stretch), "path": file.place}


class ShardedLatents(PreEncodedDataset):
    """Clips of the latents in tar files."""

    def runs(self) -> list[list[range]]:
        """The items of each tar file of each dataset."""
        return _runs([folder.firsts for folder in self._tars])

    def ahead(self, keys: Sequence[ItemKey]) -> None:
        """Fetch what `keys` name; see `Shards.ahead`."""
        _ahead(self._tars, keys)

    @property
    def _tars(self) -> tuple[LatentTars, ...]:
        return tuple(folder for folder in self.folders if isinstance(folder, LatentTars))


class _Fetching(Protocol):
    def __len__(self) -> int: ...

    def ahead(self, numbers: Sequence[int]) -> None: ...


def _ahead(places: Sequence[_Fetching], keys: Sequence[ItemKey]) -> None:
    """Each place fetches those of the items that are its own, which are numbered through."""
    start = 0
    for place in places:
        place.ahead([key.item - start for key in keys if start <= key.item < start + len(place)])
        start += len(place)


def _runs(firsts: Sequence[Sequence[int]]) -> list[list[range]]:
    """The items of each tar file, by the number of its first item in its dataset; the last number is that of all items."""
    starts = [0, *accumulate(bounds[-1] for bounds in firsts)]
    return [[range(start + a, start + b) for a, b in pairwise(bounds)] for start, bounds in zip(starts, firsts, strict=False)]
