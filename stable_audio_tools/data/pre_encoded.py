"""The `pre_encoded` dataset: latents, or tokens, that an encoder made beforehand, cropped and padded to one length.

It reads what `pre-encode` writes and upstream's folders of `.npy` and `.json` files. Item `index` on visit `v` is a function of the
seed, `v` and `index`: its crop, and what is drawn from a stored distribution.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.source import Path as Place
from stable_audio_tools.data.buckets import LengthOptions
from stable_audio_tools.data.draws import below, hashed
from stable_audio_tools.data.latent_files import open_latent_files
from stable_audio_tools.data.latent_folder import LatentFacts, LatentFolder, NotServableError
from stable_audio_tools.data.latent_shards import ShardFolder, is_shard_folder, open_shards
from stable_audio_tools.data.metadata_module import RejectedError, custom_metadata
from stable_audio_tools.data.prompts import PromptOptions
from stable_audio_tools.data.stand_in import serve
from stable_audio_tools.data.types import ItemKey, Part, Sample, valid_mask

log = logging.getLogger(__name__)

PROBED = 2  # items that a metadata module is tried on before training, chosen
LISTED = 20  # bad items named in the log


class PreEncodedItem(StrictModel):
    """One folder of latents."""

    id: str = Field(min_length=1, description="a name for messages and the metadata key dataset_id")
    path: str = Field(min_length=1, description="folder that pre-encode wrote, or of latents with a JSON file of metadata beside each")
    custom_metadata_module: str | None = Field(
        None, description="Python file with get_custom_metadata(info, audio) -> dict; runs only with --allow-code"
    )
    prompts: PromptOptions = Field(default_factory=PromptOptions, description="how prompts are made of stored metadata, and varied")
    weight: float = Field(1.0, gt=0, description="how often an epoch holds each item; 0.5: every other epoch, 2: twice, other crops")


class PreEncodedConfig(LengthOptions):
    """Latents that an encoder made beforehand."""

    dataset_type: Literal["pre_encoded"]
    datasets: tuple[PreEncodedItem, ...] = Field(min_length=1)
    latent_crop_length: PositiveInt | None = Field(
        None, description="frames of a clip; default: the model's sample_size, for the older layout the longest item"
    )
    min_length_sec: NonNegativeFloat | None = Field(None, description="items of shorter audio are not served; default: all are")
    max_length_sec: PositiveFloat | None = Field(None, description="items of longer audio are not served; default: all are")
    random_crop: bool = Field(False, description="a new place in every epoch; false: the start")
    latent_extension: str = Field("npy", min_length=1, description="the files' extension, in the older layout")
    samples_per_frame: PositiveInt | None = Field(
        None, description="audio samples of a frame, where the folder does not say: by it, a crop's seconds_start is known"
    )
    exact_seconds: bool | None = Field(
        None, description="seconds_start and seconds_total as exact numbers, or whole ones; default: as the audio's dataset had them"
    )
    drop_last: bool = Field(True, description="leave out what does not fill a training batch")

    @model_validator(mode="after")
    def _some_length_is_served(self) -> Self:
        shortest, longest = self.min_length_sec, self.max_length_sec
        if shortest is not None and longest is not None and shortest > longest:
            message = f"min_length_sec {shortest:g} is above max_length_sec {longest:g}, so that nothing would be served"
            raise ConfigError([Problem(("min_length_sec",), message, "exchange them", shortest)])
        return self

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

    def folders(self) -> tuple[LatentFolder, ...]:
        """The folders, looked over; latents are not read.

        Raises:
            ConfigError: one cannot be read, is not finished, or says nothing of where its frames lie in the audio though that is needed.
        """
        return tuple(self._open(index, Path(item.path).expanduser()) for index, item in enumerate(self.datasets))

    def _open(self, index: int, root: Path) -> LatentFolder:
        folder = open_shards(root) if is_shard_folder(root) else open_latent_files(root, self.latent_extension)
        said = folder.facts.samples_per_frame
        if said and self.samples_per_frame not in (None, said):
            message = f"{shown(str(root))} says that a frame has {said} samples"
            raise ConfigError([Problem(("samples_per_frame",), message, "remove it", self.samples_per_frame)], "dataset config")
        if (self.random_crop or self.variable_length) and not (said or self.samples_per_frame):
            unknown = "a crop's seconds_start" if self.random_crop else "which lengths the model takes"
            message = f"{shown(str(root))} does not say how many samples a frame has, so {unknown} is not known"
            raise ConfigError([Problem(("samples_per_frame",), message, "set it to the encoder's downsampling ratio")], "dataset config")
        return folder

    def build(self, *, sample_size: int, sample_rate: int, audio_channels: int = 2) -> PreEncodedDataset:
        """Look over the folders.

        Raises:
            ConfigError: a folder that cannot be read, or holds nothing usable, or other latents than the rest.
        """
        folders = self.folders()
        for folder in folders:
            _report(folder)
        return PreEncodedDataset(self, folders, sample_size, sample_rate)


class PreEncodedDataset(Dataset[Any]):
    """Clips (C, `frames`) float32, or (Q, `frames`) int64 of tokens, of at most that many with `variable_length`.

    Items of one folder come after another.

    Metadata: what was stored with the item; `dataset_id`; `path`; `timestamps`, `seconds_start` and `seconds_total`, which say where
    the crop lies in the audio file and how long that is. `valid_length` counts frames that hold audio.
    """

    def __init__(self, config: PreEncodedConfig, folders: tuple[LatentFolder, ...], sample_size: int, sample_rate: int):
        self.config, self.folders, self.sample_rate = config, folders, sample_rate
        self._kept = [[item for item in range(len(folder)) if self._wanted(folder.seconds[item])] for folder in folders]
        self._check()
        self.frames = config.latent_crop_length or max(self._whole_clip(number, sample_size) for number in range(len(folders)))
        self.samples_per_frame = folders[0].facts.samples_per_frame or config.samples_per_frame or 1
        self.parts = tuple(Part(len(kept), item.weight) for kept, item in zip(self._kept, config.datasets, strict=True))
        self.lengths = self._lengths() if config.variable_length else None

    def _lengths(self) -> Tensor:
        """(items,) int64: frames of each item."""
        pairs = zip(self.folders, self._kept, strict=True)
        return torch.tensor([min(folder.valid[item], self.frames) for folder, kept in pairs for item in kept])

    def _wanted(self, seconds: float | None) -> bool:
        if seconds is None:
            return True
        shortest, longest = self.config.min_length_sec, self.config.max_length_sec
        return (shortest is None or seconds >= shortest) and (longest is None or seconds <= longest)

    def _check(self) -> None:
        """Raises ConfigError where a folder has nothing to serve, or other latents than the first."""
        first, problems = self.folders[0].facts, []
        for index, (folder, kept) in enumerate(zip(self.folders, self._kept, strict=True)):
            facts, place = folder.facts, ("datasets", index, "path")
            if not kept:
                what = f"none of {len(folder)} items is between min_length_sec and max_length_sec"
                problems.append(Problem(place, what, "choose other bounds", folder.root))
            elif (facts.channels, facts.tokens) != (first.channels, first.tokens):
                what = f"{_described(facts)}, where the first folder has {_described(first)}"
                problems.append(Problem(place, what, "train on folders of one encoder", folder.root))
            elif facts.sample_rate not in (None, self.sample_rate):
                what = f"made of audio at {facts.sample_rate} Hz, and the model has {self.sample_rate} Hz"
                problems.append(Problem(place, what, "encode with the model's own encoder", folder.root))
        if problems:
            raise ConfigError(problems, "dataset config")

    def _whole_clip(self, number: int, sample_size: int) -> int:
        folder = self.folders[number]
        if isinstance(folder, ShardFolder) and folder.facts.samples_per_frame:
            return max(1, sample_size // folder.facts.samples_per_frame)
        return max(folder.frames[item] for item in self._kept[number])

    def __len__(self) -> int:
        return sum(map(len, self._kept))

    def __getitem__(self, index: int) -> Sample:
        """Item `index` as on its first visit with seed 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.visit(ItemKey(0, 0, index))

    def visit(self, key: ItemKey) -> Sample:
        """The item named by `key`; another one, named by the same key, while it cannot be served.

        Raises:
            ConfigError: item after item cannot be served.
        """
        return serve(key, len(self), lambda item, attempt: self._clip(item, (*key, attempt)), self.name)

    def _place(self, index: int) -> tuple[int, LatentFolder, int]:
        for number, kept in enumerate(self._kept):
            if index < len(kept):
                return number, self.folders[number], kept[index]
            index -= len(kept)
        raise AssertionError("the index is within the length")

    @property
    def always(self) -> frozenset[str]:
        """Metadata that every item has."""
        return frozenset(("path", "dataset_id", "latent_crop_start"))

    def stored_metadata(self, *, run_code: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name and metadata of all items, but for what depends on the crop; where a module makes some, of a few items or none.

        Args:
            run_code: serve a few items of each folder that has a metadata module.
        """
        first = 0
        for settings, folder, kept in zip(self.config.datasets, self.folders, self._kept, strict=True):
            if settings.custom_metadata_module is None:
                yield from _stored(settings.prompts, folder, kept)
            elif run_code:
                yield from ((self.name(index), self[index].metadata) for index in range(first, first + min(len(kept), PROBED)))
            first += len(kept)

    def name(self, index: int) -> str:
        _, folder, item = self._place(index)
        return folder.name(item)

    def _clip(self, index: int, names: tuple[int, ...]) -> Sample:
        number, folder, item = self._place(index)
        real = folder.valid[item]
        moves = self.config.random_crop and real > self.frames
        start = below(real - self.frames + 1, *names, "start") if moves else 0
        length = min(real - start, self.frames)
        varies = self.config.variable_length
        latents = folder.read(item, start, start + (length if varies else self.frames))
        latents = drawn(latents, *names) if folder.facts.distribution else latents
        metadata = self._metadata(number, folder, item, start)
        latents = latents if varies else F.pad(latents, (0, self.frames - latents.shape[-1]))
        settings = self.config.datasets[number]
        metadata = settings.prompts.drawn(metadata, *names)
        if not settings.custom_metadata_module:
            return Sample(latents, metadata, length)
        facts = {"latent_filename": folder.name(item), "latent_crop_length": self.frames}
        return self._custom(settings.custom_metadata_module, Sample(latents, metadata, length), facts, start)

    def _metadata(self, number: int, folder: LatentFolder, item: int, start: int) -> dict[str, Any]:
        stored = {"path": folder.name(item), **folder.metadata(item)}
        place = {"dataset_id": self.config.datasets[number].id, "latent_crop_start": start}
        return {**stored, **self._times(folder, stored, start, folder.valid[item]), **place}

    def _times(self, folder: LatentFolder, stored: Mapping[str, Any], start: int, real: int) -> dict[str, Any]:
        """Where the crop lies in the audio file.

        Args:
            start: its first frame. real: the item's frames of audio.
        """
        exact = not folder.facts.rounded_seconds if self.config.exact_seconds is None else self.config.exact_seconds
        ratio = folder.facts.samples_per_frame or self.config.samples_per_frame or 0
        total, found = stored.get("seconds_total"), {}
        if stored.get("seconds_start") is not None:
            before = round(stored["seconds_start"] * self.sample_rate)  # in samples, since sums of seconds are not exact
            seconds = (before + start * ratio) / self.sample_rate if start else stored["seconds_start"]
            found["seconds_start"] = seconds if exact else math.floor(seconds)
        if total is not None:
            found["seconds_total"] = total if exact else math.ceil(total)
        if stored.get("timestamps") is not None:
            begin, end = stored["timestamps"]
            whole = total * self.sample_rate if isinstance(folder, ShardFolder) and total else 0  # upstream rounds the total up
            share = ratio / whole if whole else (end - begin) / real
            found["timestamps"] = (begin + start * share, min(end, begin + (start + self.frames) * share))
        return found

    def _custom(self, module: str, clip: Sample, facts: Mapping[str, Any], start: int) -> Sample:
        """The clip with what the user's code says.

        Args:
            facts: what the code is told beside the metadata. start: the clip's first frame.
        """
        mask = valid_mask(clip.valid_length or 0, clip.audio.shape[-1])
        try:
            answer = custom_metadata(module, {**clip.metadata, **facts, "padding_mask": mask}, clip.audio)
        except RejectedError as error:
            raise NotServableError(str(error)) from None
        if answer.audio:
            raise ConfigError("__audio__ is for datasets of audio; this one is of stored latents", module)
        clip = clip._replace(metadata={**clip.metadata, **answer.metadata})
        if answer.replacement is None:
            return clip
        if answer.replacement.shape[0] != clip.audio.shape[0]:
            channels = f"{answer.replacement.shape[0]} channels, and the stored latents {clip.audio.shape[0]}"
            raise ConfigError(f"__replace__ of {shown(str(clip.metadata['path']))} has {channels}", module)
        return _replaced(clip, answer.replacement.to(clip.audio.dtype), start)


def _replaced(clip: Sample, latents: Tensor, start: int) -> Sample:
    """Other latents (C, T) in place of a clip's: of its length they are as they are, longer ones are cut as it was, shorter ones padded."""
    frames = clip.audio.shape[-1]
    if latents.shape[-1] == frames:
        return clip._replace(audio=latents)
    latents = latents[:, start : start + frames] if latents.shape[-1] > frames else latents
    return clip._replace(audio=F.pad(latents, (0, frames - latents.shape[-1])), valid_length=latents.shape[-1])


def _stored(prompts: PromptOptions, folder: LatentFolder, kept: Sequence[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and metadata of the items of a folder; those that cannot be read any more are passed over."""
    for item in kept:
        with suppress(NotServableError):
            yield folder.name(item), prompts.drawn(folder.metadata(item), item)


def drawn(distribution: Tensor, *names: int | str) -> Tensor:
    """(2 C, T) means and deviations -> (C, T), drawn as `names` say."""
    mean, deviation = distribution.chunk(2)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(hashed(*names, "latents")))
    return mean + deviation * noise


def _described(facts: LatentFacts) -> str:
    return f"{facts.channels} codebooks of tokens" if facts.tokens else f"latents of {facts.channels} channels"


def _report(folder: LatentFolder) -> None:
    """Log what is wrong, once, with causes.

    Raises:
        ConfigError: nothing can be used.
    """
    root, found = shown(folder.root), len(folder) + len(folder.bad)
    causes = [f"  {path}: {cause}" for path, cause in folder.bad[:LISTED]]
    more = [f"  and {len(folder.bad) - LISTED} more"] if len(folder.bad) > LISTED else []
    if not len(folder):
        message = "\n".join([f"none of {found} items can be used", *causes, *more]) if found else "no latents in this folder"
        raise ConfigError([Problem((), message, "pre-encode makes such a folder from audio")], root)
    if folder.bad:
        log.warning("%s: %d of %d items cannot be used:\n%s", root, len(folder.bad), found, "\n".join([*causes, *more]))
    log.info("%s: %d items", root, len(folder))
