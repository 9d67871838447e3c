"""One training run, whichever command asks for it: its folder, what watches it, how it ends, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.training import slurm
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO, newest_good_checkpoint, step_of
from stable_audio_tools.training.checkpoints import RunCheckpoint, SignalGuard, StopAtStep, StopAtTime
from stable_audio_tools.training.config import AnyRun
from stable_audio_tools.training.data_module import AudioDataModule
from stable_audio_tools.training.evaluation_callback import EvaluationCallback
from stable_audio_tools.training.factory import create_demo_callback_from_config
from stable_audio_tools.training.loggers import create_loggers, end_runs
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.module_evaluation import ModuleEvaluation
from stable_audio_tools.training.monitor import Goal, ValidationMonitor
from stable_audio_tools.training.pace import Pace
from stable_audio_tools.training.parallel import whole_state
from stable_audio_tools.training.progress import RunProgress
from stable_audio_tools.training.run_folder import RunFolder, write_json
from stable_audio_tools.training.stop_signals import StoppedBySignal
from stable_audio_tools.training.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """A run as asked for, validated; nothing is built or written yet.

    config: what is trained. model_document, dataset_document: the JSON it was read from. arguments: all that was asked for, as JSON.
    folder: the run folder. resume_from: the checkpoint to go on from. resume_command: the command that goes on with the run.
    max_steps: train steps to go to; None: no limit. max_minutes: of training; 0: no limit.
    max_stall_minutes: without progress, after which the run is given up; 0: never.
    checkpoint_every: train steps between two checkpoints; 0: only at the end. save_top_k: newest to keep; -1: all.
    goal: what validation is watched for; None: nothing.
    logger, project: where numbers and demos go besides the folder.
    """

    config: AnyRun
    model_document: dict[str, Any]
    dataset_document: dict[str, Any]
    arguments: dict[str, Any]
    folder: Path
    resume_from: Path | None = None
    resume_command: str = ""
    max_steps: int | None = None
    max_minutes: float = 0.0
    max_stall_minutes: float = 30.0
    checkpoint_every: int = 1000
    save_top_k: int = 3
    goal: Goal | None = None
    logger: str = "auto"
    project: str = "stable_audio_tools"


def place_run(folder: Path, *, recover: bool, ckpt_path: str) -> Path | None:
    """The checkpoint that a run in `folder` resumes from; None: it starts. A job that SLURM has requeued recovers unasked.

    Raises:
        ConfigError: the folder cannot be written, holds another run, or the checkpoint cannot be used.
    """
    _check_writable(folder)
    recover = recover or slurm.restarted()
    if recover and (newest := newest_good_checkpoint(folder / "checkpoints")):
        return newest
    if ckpt_path:
        AtomicCheckpointIO().load_checkpoint(ckpt_path)
        return Path(ckpt_path)
    if not recover and any((folder / "checkpoints").glob("*.ckpt")):
        fix = "--recover goes on with it; another --name starts a new run"
        raise ConfigError([Problem((), "this run exists already and has checkpoints", fix)], source=str(folder))
    return None


def _check_writable(folder: Path) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "may not be written" if existing.is_dir() else "is a file"
        fix = "choose another --save-dir or --name"
        raise ConfigError([Problem((), f"{existing} {what}", fix)], source=f"--save-dir {folder.parent}")


class TrainingRun:
    """A run in its folder. `callbacks` and `trainer_arguments` make it part of a Trainer, `fit` takes it to its end."""

    def __init__(self, settings: RunSettings):
        self.settings, self.folder = settings, settings.folder
        self.checkpoint = RunCheckpoint(self.folder / "checkpoints", every=settings.checkpoint_every, keep=settings.save_top_k)
        self.signals = SignalGuard(self.checkpoint)
        self.page = RunFolder(self.folder, name=self.folder.name, max_steps=settings.max_steps, resume=settings.resume_command)

    def prepare_folder(self) -> None:
        """Make the run folder and write down what was asked for.

        Raises:
            ConfigError: it cannot be written.
        """
        written = {
            "config.json": self.settings.model_document,
            "dataset.json": self.settings.dataset_document,
            "args.json": self.settings.arguments,
        }
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            if getattr(rank_zero_only, "rank", 0) == 0:
                for name, content in written.items():
                    write_json(self.folder / name, content)
            (self.folder / "train.log").open("a").close()
        except OSError as error:
            raise ConfigError(f"cannot write the run folder: {error.strerror}", source=f"--save-dir {self.folder}") from None

    @contextlib.contextmanager
    def log_file(self) -> Iterator[None]:
        """Messages inside go into `train.log` too."""
        file = logging.FileHandler(self.folder / "train.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(file)
        try:
            log.info("run folder %s", self.folder)
            yield
        finally:
            logging.getLogger().removeHandler(file)
            file.close()

    def trainer_arguments(self, data: AudioDataModule) -> dict[str, Any]:
        """What every Trainer of a run is given, whatever machine it runs on; `data` is built."""
        return {
            "max_steps": -1,  # Lightning would count optimizer calls
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "logger": self._loggers(),
            "callbacks": self._callbacks(data),
            "plugins": [AtomicCheckpointIO(), *slurm.cluster_plugins()],
            "default_root_dir": self.folder,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        }

    def _callbacks(self, data: AudioDataModule) -> list[pl.Callback]:
        settings = self.settings
        demos = create_demo_callback_from_config(settings.config, demo_dl=data.demo_clips(), folder=self.folder / "demos")
        limits: list[pl.Callback] = [StopAtStep(settings.max_steps)] if settings.max_steps else []
        limits += [StopAtTime(settings.max_minutes)] if settings.max_minutes else []
        guards: list[pl.Callback] = [self.signals]
        watchdog = Watchdog(60 * settings.max_stall_minutes, self.folder / "train.log") if settings.max_stall_minutes else None
        guards += [watchdog] if watchdog else []
        monitor = ValidationMonitor(settings.goal, self.checkpoint, self._export_best) if settings.goal else None
        # Before the checkpoint of the same step, which then holds what was judged.
        judges: list[pl.Callback] = [monitor] if monitor else []
        judges += self._evaluation(data, watchdog, monitor)
        return [*guards, *limits, RunProgress(settings.max_steps), demos, *judges, self.checkpoint, self.page]

    def _evaluation(self, data: AudioDataModule, watchdog: Watchdog | None, monitor: ValidationMonitor | None) -> list[pl.Callback]:
        clips, asked = data.evaluation_clips(), self.settings.config.training.evaluation
        if clips is None or asked is None:
            return []
        judge = monitor.judge if monitor is not None and monitor.goal.is_evaluated else None
        moved = watchdog.moved if watchdog is not None else None
        evaluation = ModuleEvaluation(self.settings.config, clips)
        return [EvaluationCallback(asked.every, evaluation, self.folder, judge=judge, moved=moved)]

    def _loggers(self) -> list[Any]:
        settings = self.settings
        asked = {"model": settings.model_document, "dataset": settings.dataset_document, "args": settings.arguments}
        resume_step = step_of(settings.resume_from) if settings.resume_from else None
        return create_loggers(
            settings.logger, self.folder, name=self.folder.name, project=settings.project, config=asked, resume_step=resume_step
        )

    def fit(self, trainer: pl.Trainer, module: TrainingModule, data: AudioDataModule) -> int:
        """Train to the end and leave weights and report; returns the exit status, which a signal may have set."""
        module.pace = Pace()
        try:
            trainer.fit(module, datamodule=data, ckpt_path=self.settings.resume_from, weights_only=True)
        finally:
            end_runs(trainer.loggers)
        try:
            path = self._export(module, "model")
            if trainer.is_global_zero:
                log.info("weights: %s\nreport: %s", path, self.folder / "index.html")
            if self.checkpoint.unsaved:
                raise OSError(self.checkpoint.unsaved)
        except OSError as error:
            self.page.update(trainer, module, "failed", error=str(error))
            raise
        except StoppedBySignal:
            self.page.update(trainer, module, "stopped")
            raise
        self.page.update(trainer, module, "stopped" if self.signals.exit_status else "finished")
        return self.signals.exit_status or 0

    def _export_best(self, module: TrainingModule) -> None:
        try:
            path = self._export(module, "best")
            if module.trainer.is_global_zero:
                log.info("step %d is the best so far: %s", module.train_step, path)
        except OSError as error:
            log.error("the best weights could not be exported: %s; training goes on", error)

    def _export(self, module: TrainingModule, name: str) -> Path:
        path = self.folder / "exports" / f"{name}.safetensors"
        weights = whole_state(module.sampling_model)
        if not module.trainer.is_global_zero:
            return path
        path.parent.mkdir(exist_ok=True)
        facts = {name: json.dumps(value) for name, value in module.strategy.checkpoint_metadata().items()}
        save_model(path, weights, self.settings.model_document, facts | {"train_step": str(module.train_step)})
        return path

    def failure(self, error: Exception) -> str:
        """What to tell the user about an error that ended the run; its traceback goes into `train.log`."""
        with contextlib.suppress(OSError), (self.folder / "train.log").open("a") as file:  # the disk may be what failed
            traceback.print_exception(error, file=file)
        last = self.folder / "checkpoints" / "last.ckpt"
        hint = f"; --recover goes on from {last}" if last.exists() else ""
        cause = f"{type(error).__name__}: {error}"
        return f"error: training failed: {cause}\n  = traceback in {self.folder / 'train.log'}{hint}"
