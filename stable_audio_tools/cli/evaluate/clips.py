"""Where the clips come from that are measured or compared with: folders and datasets; and where those of a model are kept."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from stable_audio_tools.audio.io import save_audio
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.file_table import AudioFile
from stable_audio_tools.data.findings import Limits
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.metadata_module import require_permission
from stable_audio_tools.data.scan import report, scan_folder
from stable_audio_tools.data.types import ItemKey, fetch
from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.evaluation.clip_sets import AudioFiles, Clip, Clips
from stable_audio_tools.evaluation.model_clips import real_length

ANYTHING = Limits(min_seconds=0.0, silence_db=None)


class DatasetClips(Sequence[Clip]):
    """The first items of a dataset, each made when it is asked for."""

    def __init__(self, dataset: Any, sample_rate: int, count: int):
        self.dataset, self.sample_rate, self._length = dataset, sample_rate, count

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | Sequence[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(f"clip {index} of {self._length}")
        sample = fetch(self.dataset, [ItemKey(0, 0, index)])[0]
        length = real_length(sample.metadata, sample.audio.shape[-1]) if sample.valid_length is None else max(1, sample.valid_length)
        return Clip(sample.audio[:, :length], self.sample_rate, str(sample.metadata.get("path", index)))


def folder_config(folder: str) -> AudioDirConfig:
    """A dataset of a folder's files, each from its beginning, silent ones too; nothing is written into the folder."""
    item = {"id": "reference", "path": folder, "scan_cache": False}
    return AudioDirConfig.model_validate({"datasets": (item,), "random_crop": False, "silence_threshold_db": None})


def audio_files(folder: str, flag: str) -> list[AudioFile]:
    """The audio files below a folder, by name.

    Raises:
        ConfigError: the folder cannot be read, or holds none that can be used.
    """
    try:
        scan = scan_folder(folder, ANYTHING, keep=False)
        report(scan)
    except ConfigError as error:
        raise ConfigError(error.problems, f"{flag} {folder}") from None
    return list(scan.files)


def chosen(files: Sequence[AudioFile], count: int | None, seed: int) -> list[AudioFile]:
    """`count` of the files, drawn by `seed`, in their order; None, or more than there are: all."""
    if count is None or count >= len(files):
        return list(files)
    places = torch.randperm(len(files), generator=generator_for(seed))[:count].sort().values
    return [files[place] for place in places.tolist()]


def read_files(files: Sequence[AudioFile], seconds: float | None = None) -> AudioFiles:
    return AudioFiles([file.path for file in files], seconds)


def read_dataset(path: str, *, allow_code: bool) -> Any:
    """A dataset config's file.

    Raises:
        ConfigError: it is not valid, names code without permission, or is of latents.
    """
    config = parse_dataset_config(path)
    require_permission(getattr(config, "code", ()), allow_code)
    if config.dataset_type == "pre_encoded" or getattr(config, "pre_encoded", False):
        fix = "name a dataset of audio, or a folder with --reference"
        raise ConfigError([Problem((), "these data are latents, and evaluations compare audio", fix)], path)
    return config


def training_clips(named: str, shape: tuple[int, int, int], *, allow_code: bool) -> Clips:
    """All clips of `--train-dataset`: the files of a folder or of a dataset of folders, whole; of any other dataset its items.

    Args:
        shape: samples, Hz and channels of items.
    """
    if Path(named).is_dir():
        return read_files(audio_files(named, "--train-dataset"))
    config = read_dataset(named, allow_code=allow_code)
    if isinstance(config, AudioDirConfig):
        return read_files([file for item in config.datasets for file in audio_files(item.path, "--train-dataset")])
    size, rate, channels = shape
    dataset = config.build(sample_size=size, sample_rate=rate, audio_channels=channels)
    return DatasetClips(dataset, rate, len(dataset))


def dataset_loader(config: Any, shape: tuple[int, int, int], batch_size: int, seed: int, *, allow_code: bool) -> AudioLoader:
    """Batches of a dataset's items in order, the same at every pass; `shape` is samples, Hz and channels of items."""
    return create_dataloader_from_config(config, batch_size, *shape, num_workers=0, shuffle=False, seed=seed, allow_code=allow_code)


def make_folder(folder: Path) -> None:
    """For `--save-audio`.

    Raises:
        ConfigError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder: {error.strerror}", source=f"--save-audio {folder}") from None


def save_clips(folder: Path, clips: Sequence[Tensor] | Tensor, names: Sequence[str], sample_rate: int) -> None:
    """Write clips (C, T) as numbered files, named after their prompts or sources.

    Raises:
        ConfigError: the folder cannot be made, or a file not be written.
    """
    make_folder(folder)
    for index, (clip, name) in enumerate(zip(clips, names, strict=True)):
        words = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("#", "s")).strip("_")[:60]
        save_audio(folder / f"{index:02d}_{words}.wav", clip, sample_rate)


def shape_of(args: argparse.Namespace, first: AudioFile) -> tuple[int, int, int]:
    """Samples, Hz and channels of a dataset's items where files say it: as the first file, or its beginning."""
    seconds = first.info.seconds if args.seconds is None else min(args.seconds, first.info.seconds)
    return max(1, round(seconds * first.info.sample_rate)), first.info.sample_rate, min(2, first.info.channels)
