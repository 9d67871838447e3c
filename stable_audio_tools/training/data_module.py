"""The data of a run as Lightning wants them: resumable loaders for training, validation and test, and clips for demos."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.metadata_module import require_permission
from stable_audio_tools.training.config import AnyRun, parse_run_config

DEMO_BATCH_SIZE = 8
DatasetSource = Mapping[str, Any] | str | os.PathLike[str] | StrictModel


class AudioDataModule(pl.LightningDataModule):
    """Loaders of the shape that a model config asks for; Lightning saves and restores the place of the training loader.

    Args:
        config: the training data, a dataset config or its file; None: the built-in synthetic sounds.
        val_config, test_config: data to validate and to test on; without one, synthetic data use their held-out sounds and others none.
        batch_size: clips a batch, on each device.
        num_workers: processes that load training data; 0: the training process does.
        seed: of the order and the crops.
        allow_code: let the configs name Python code to run.

    Raises:
        ConfigError: a dataset config is not valid, or names code without permission.
    """

    def __init__(
        self,
        config: DatasetSource | None = None,
        val_config: DatasetSource | None = None,
        test_config: DatasetSource | None = None,
        *,
        batch_size: int = 4,
        num_workers: int = 4,
        seed: int = 42,
        allow_code: bool = False,
    ):
        super().__init__()
        self.batch_size, self.num_workers, self.seed, self.allow_code = batch_size, num_workers, seed, allow_code
        self.train_config = self._parsed({"dataset_type": "synthetic"} if config is None else config)
        self.val_config = self._evaluation_config(val_config)
        self.test_config = self._evaluation_config(test_config)
        self._train: AudioLoader | None = None
        self._validation: AudioLoader | None = None
        self._test: AudioLoader | None = None

    def _parsed(self, given: DatasetSource) -> Any:
        config = parse_dataset_config(given)
        try:
            require_permission(getattr(config, "code", ()), self.allow_code)
        except ConfigError as error:
            if not isinstance(given, str | os.PathLike):
                raise
            raise ConfigError(error.problems, os.fspath(given), read_json(given)[1]) from None
        return config

    def _evaluation_config(self, given: DatasetSource | None) -> StrictModel | None:
        if given is not None:
            return self._parsed(given)
        return self.train_config.held_out() if self.train_config.dataset_type == "synthetic" else None

    def build(self, run: AnyRun) -> None:
        """Read the data, as clips of the length, rate and channels that `run` trains on.

        Raises:
            ConfigError: the data cannot be used.
        """
        self._train = self._loader(run, self.train_config, self.num_workers, shuffle=True)
        self._validation = self._loader(run, self.val_config, 0, shuffle=False) if self.val_config is not None else None
        same = self.test_config == self.val_config
        self._test = self._validation if same or self.test_config is None else self._loader(run, self.test_config, 0, shuffle=False)

    def _loader(self, run: AnyRun, config: Any, workers: int, *, shuffle: bool) -> AudioLoader:
        return create_dataloader_from_config(
            config,
            self.batch_size,
            run.sample_size,
            run.sample_rate,
            run.audio_channels,
            workers,
            shuffle,
            self.seed,
            allow_code=self.allow_code,
        )

    def setup(self, stage: str) -> None:
        """Build for the module in training, unless that is done."""
        if self._train is None and self.trainer is not None:
            document: Any = self.trainer.lightning_module.model_config
            self.build(parse_run_config(document))

    def train_dataloader(self) -> AudioLoader | None:
        return self._train

    def val_dataloader(self) -> AudioLoader | list[Any]:
        return self._validation if self._validation is not None else []

    def test_dataloader(self) -> AudioLoader | list[Any]:
        return self._test if self._test is not None else []

    @property
    def validates(self) -> bool:
        return self.val_config is not None

    def demo_clips(self) -> AudioLoader:
        """Batches for demos, of validation data where there are any; the same at every pass."""
        source = self._validation if self._validation is not None else self._train
        if source is None:
            raise RuntimeError("build the data first")
        return AudioLoader(source.dataset, DEMO_BATCH_SIZE, seed=self.seed, shuffle=False)
