"""Dataset configs, told apart by `dataset_type`, and the loader that any of them gives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from stable_audio_tools.configs.base import Family, StrictModel
from stable_audio_tools.configs.parse import read_json, validate
from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.buckets import ANY_LENGTH, LengthGrid
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.metadata_module import require_permission
from stable_audio_tools.data.pre_encoded import PreEncodedConfig
from stable_audio_tools.data.synthetic import SyntheticConfig
from stable_audio_tools.data.webdataset import WebDatasetConfig

DATASETS = Family("dataset", AudioDirConfig, SyntheticConfig, PreEncodedConfig, WebDatasetConfig, key="dataset_type")
DatasetConfig = Annotated[StrictModel, DATASETS]


def parse_dataset_config(config: Mapping[str, Any] | str | os.PathLike[str] | StrictModel, source: str = "dataset config") -> Any:
    """A validated dataset config from a JSON file's path, a mapping, or itself.

    Raises:
        ConfigError: every problem of the file or mapping.
    """
    if isinstance(config, str | os.PathLike):
        document, text = read_json(Path(config))
        return validate(DatasetConfig, document, os.fspath(config), text)
    return validate(DatasetConfig, dict(config) if isinstance(config, Mapping) else config, source)


def create_dataloader_from_config(
    dataset_config: Mapping[str, Any] | str | os.PathLike[str] | StrictModel,
    batch_size: int,
    sample_size: int,
    sample_rate: int,
    audio_channels: int = 2,
    num_workers: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    *,
    grid: LengthGrid = ANY_LENGTH,
    rank: int | None = None,
    world_size: int | None = None,
    allow_code: bool = False,
) -> AudioLoader:
    """A loader of `(audio (B, C, T) float32, tuple of B metadata dicts)`; `data.loader.AudioLoader` says what it keeps.

    Args:
        sample_size: T, samples. sample_rate: Hz. audio_channels: C.
        shuffle: false is for evaluation: every pass is the same and holds all items.
        seed: of the order and the crops.
        grid: the lengths in samples that batches may have, for datasets of `variable_length`.
        rank, world_size: left out: those of torch.distributed, if it runs.
        allow_code: let the config name Python code to run.

    Raises:
        ConfigError: the config, or the data, cannot be used.
    """
    config = parse_dataset_config(dataset_config)
    require_permission(getattr(config, "code", ()), allow_code)
    dataset = config.build(sample_size=sample_size, sample_rate=sample_rate, audio_channels=audio_channels)
    return AudioLoader(
        dataset,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=getattr(config, "drop_last", True),
        num_workers=num_workers,
        draws=config.draws(dataset) if shuffle and isinstance(config, WebDatasetConfig) else None,
        grid=grid.in_frames(getattr(dataset, "samples_per_frame", 1)),
        rank=rank,
        world_size=world_size,
    )
