"""The data of a run as Lightning wants them: resumable loaders for training, validation and test, and clips for demos."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.data.buckets import ANY_LENGTH
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.metadata_module import require_permission
from stable_audio_tools.data.needs import check_needs
from stable_audio_tools.training.clip_lengths import clip_lengths
from stable_audio_tools.training.config import AnyRun, parse_run_config
from stable_audio_tools.training.evaluation import PeriodicEvaluationConfig
from stable_audio_tools.training.latent_data import check_encoder, check_form, check_shape
from stable_audio_tools.training.metadata_needs import metadata_needs
from stable_audio_tools.training.stored_texts import recall_texts

DEMO_BATCH_SIZE = 8
EVALUATION = ("training", "evaluation")
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
        self._evaluation: AudioLoader | None = None

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

    def build(self, run: AnyRun, stage: str = "fit") -> None:
        """Read the data, as clips of the length, rate and channels that `run` trains on.

        Args:
            stage: fit, which also validates, validate or test.

        Raises:
            ConfigError: the data cannot be used.
        """
        workers = 0 if stage == "fit" else self.num_workers  # those of training would wait meanwhile
        if stage == "fit":
            self._train = self._loader(run, self.train_config, self.num_workers, shuffle=True)
        if stage in ("fit", "validate") and self.val_config is not None:
            self._validation = self._loader(run, self.val_config, workers, shuffle=False)
        if stage == "test" and self.test_config is not None:
            self._test = self._loader(run, self.test_config, workers, shuffle=False)
        if stage == "fit" and run.training.evaluation is not None:
            run.training.evaluation.try_embedder()
            self._evaluation = self._evaluated(run, run.training.evaluation)

    def _evaluated(self, run: AnyRun, asked: PeriodicEvaluationConfig) -> AudioLoader:
        """What `training.evaluation` compares with: its own data, which are audio, or those of validation.

        Raises:
            ConfigError: there are none, or fewer than it asks for.
        """
        source = self._validation if asked.dataset is None else self._named(run, asked.dataset)
        if source is None:
            fix = "give --val-dataset-config, or name a dataset config as training.evaluation.dataset"
            raise ConfigError(
                [Problem(EVALUATION, "there is nothing to compare with: the run has no validation data", fix)], "model config"
            )
        found = len(source.dataset)  # type: ignore[arg-type]
        if asked.num_clips is not None and found < asked.num_clips:
            message, fix = f"num_clips is {asked.num_clips}, and the data have {found}", f"set it to {found}, or name more data"
            raise ConfigError([Problem((*EVALUATION, "num_clips"), message, fix)], "model config")
        return AudioLoader(source.dataset, asked.batch_size, seed=self.seed, shuffle=False, grid=source.grid, rank=0, world_size=1)

    def _named(self, run: AnyRun, path: str) -> AudioLoader:
        """The data of a dataset config file."""
        config = self._parsed(path)
        if config.dataset_type == "pre_encoded" or getattr(config, "pre_encoded", False):
            problem = Problem(
                (*EVALUATION, "dataset"), "these data are latents, and evaluations compare audio", "name a dataset of audio", path
            )
            raise ConfigError([problem], "model config")
        loader = self._audio_loader(run, config, 0, shuffle=False)
        check_needs(loader.dataset, metadata_needs(run))
        return loader

    def _audio_loader(self, run: AnyRun, config: Any, workers: int, *, shuffle: bool) -> AudioLoader:
        return create_dataloader_from_config(
            config,
            self.batch_size,
            run.sample_size,
            run.sample_rate,
            run.audio_channels,
            workers,
            shuffle,
            self.seed,
            grid=clip_lengths(run) if getattr(config, "variable_length", False) else ANY_LENGTH,
            allow_code=self.allow_code,
        )

    def _loader(self, run: AnyRun, config: Any, workers: int, *, shuffle: bool) -> AudioLoader:
        check_form(run, config)
        loader = self._audio_loader(run, config, workers, shuffle=shuffle)
        check_shape(run, loader.dataset)
        check_needs(loader.dataset, metadata_needs(run))
        return loader

    def setup(self, stage: str) -> None:
        """Build for the module in training, unless that is done."""
        if self._stages.get(stage) is None and self.trainer is not None:
            document: Any = self.trainer.lightning_module.model_config
            self.build(parse_run_config(document), stage)

    @property
    def _stages(self) -> dict[str, AudioLoader | None]:
        """What each stage runs on, once it is built."""
        return {"fit": self._train, "validate": self._validation, "test": self._test}

    def train_dataloader(self) -> AudioLoader | None:
        return self._known(self._train)

    def val_dataloader(self) -> AudioLoader | list[Any]:
        return self._known(self._validation) or []

    def test_dataloader(self) -> AudioLoader | list[Any]:
        return self._known(self._test) or []

    def _known(self, loader: AudioLoader | None) -> AudioLoader | None:
        """The loader, if its latents are of the encoder in training, whose weights may have come with a checkpoint only now.

        Raises:
            ConfigError: they are another encoder's.
        """
        if loader is not None and self.trainer is not None:
            module: Any = self.trainer.lightning_module
            check_encoder(module.model, loader.dataset)
            recall_texts(module.model, loader.dataset)
        return loader

    @property
    def validates(self) -> bool:
        return self.val_config is not None

    @property
    def tests(self) -> bool:
        return self.test_config is not None

    def use_batch_size(self, batch_size: int) -> None:
        """Make batches of another size, from the next pass on."""
        self.batch_size = batch_size
        for loader in (self._train, self._validation, self._test):
            if loader is not None:
                loader.batch_size = batch_size

    def trial_batches(self, batch_size: int) -> AudioLoader:
        """Training batches of a size, from a loader of their own, whose position is nobody else's."""
        built = self._built()
        return AudioLoader(built.dataset, batch_size, seed=self.seed, num_workers=self.num_workers, grid=built.grid)

    def demo_clips(self) -> AudioLoader:
        """Batches for demos, of validation data where there are any; the same at every pass."""
        source = self._validation if self._validation is not None else self._built()
        return AudioLoader(source.dataset, DEMO_BATCH_SIZE, seed=self.seed, shuffle=False, grid=source.grid, rank=0, world_size=1)

    def evaluation_clips(self) -> AudioLoader | None:
        """Batches for `training.evaluation`, the same at every pass; None: it is not asked for."""
        return self._evaluation

    def _built(self) -> AudioLoader:
        if self._train is None:
            raise RuntimeError("build the data first")
        return self._train
