"""When a run's training state is saved (every N train steps, when a signal asks, always at the end), and when a run ends."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from stable_audio_tools.models.atomic_file import MARK
from stable_audio_tools.training import slurm
from stable_audio_tools.training.checkpoint_io import CheckpointWriteError
from stable_audio_tools.training.stop_signals import EXIT_STATUS, end_at_once, handle_signals, take_save_signals

log = logging.getLogger(__name__)


class RunCheckpoint(Checkpoint):
    """Writes `step=00000100.ckpt` files and `last.ckpt`, counted in train steps.

    Written policy: a full disk or a read-only folder is said loudly and training goes on, since the next save may succeed and the
    checkpoints before are as they were. `unsaved` is the cause if the latest save failed, so that a run which ends so can say it.

    Args:
        folder: where they go.
        every: train steps between two saves; 0: only at the end.
        keep: how many of the newest to keep, `last.ckpt` apart; -1: all.
    """

    def __init__(self, folder: Path, *, every: int, keep: int):
        self.folder, self.every, self.keep = folder, every, keep
        self.unsaved: str | None = None
        self._last: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._last = pl_module.train_step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Lightning 2.6 does not count an epoch as begun which follows a resume from the last batch of the one before. A checkpoint
        # in its middle would then be taken for one of its end, without a place in the data, which would be served again.
        epochs: Any = trainer.fit_loop.epoch_progress
        if epochs.current.ready == epochs.current.processed:
            epochs.increment_ready()
            epochs.increment_started()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # A run that is about to stop is saved here: once Lightning has left the epoch, the position in it is lost.
        if trainer.should_stop or (self.every and pl_module.train_step % self.every == 0):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, module: Any) -> None:
        """Save this step unless it is saved already, and let old files go.

        Raises:
            FloatingPointError: the weights are lost; the checkpoints before are kept.
        """
        if module.train_step == self._last:
            return
        module.check_weights()
        self._last = module.train_step
        path = self.folder / f"step={module.train_step:08d}.ckpt"
        self.unsaved = trainer.strategy.broadcast(self._write(trainer, path))
        if self.unsaved and trainer.is_global_zero:
            log.error("step %d is not saved: %s", module.train_step, self.unsaved)

    def _write(self, trainer: pl.Trainer, path: Path) -> str | None:
        """Save on every rank; the cause if it failed, on the rank that writes."""
        try:
            trainer.save_checkpoint(path)
        except CheckpointWriteError as error:
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
            return str(error)
        if trainer.is_global_zero:
            try:
                give_second_name(path, self.folder / "last.ckpt")
                self._prune()
            except OSError as error:
                return f"cannot renew {self.folder / 'last.ckpt'}: {error.strerror or error}"
        return None

    def _prune(self) -> None:
        if self.keep < 0:
            return
        # By time, not by name: after going back to an earlier step, higher steps are the older ones.
        saved = sorted(self.folder.glob("step=*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in saved[: max(len(saved) - self.keep, 0)]:
            path.unlink(missing_ok=True)


def give_second_name(path: Path, name: Path) -> None:
    """Make `name` a name of the same file, whatever it was before; a copy only where the file system has no hard links.

    Raises:
        OSError: no space, no permission and the like; `name` is as it was.
    """
    partial = name.with_name(f"{name.name}{MARK}{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        shutil.copyfile(path, partial)
    partial.replace(name)
    partial.unlink(missing_ok=True)  # where both were names of one file already, replacing does nothing


class SignalGuard(pl.Callback):
    """SIGTERM and SIGINT save at the next step boundary and end the run; SIGUSR1 saves and goes on, or has SLURM requeue the job.

    A handler only notes the signal, so it can come at any moment; the second SIGTERM or SIGINT ends the process at once. A
    validation that is under way ends with its batch, demos with their sampling step, and one more step is trained, since Lightning
    keeps no exact position elsewhere. `exit_status` is 143 or 130 after such a stop, and 143 in a job that is requeued.
    """

    def __init__(self, checkpoint: RunCheckpoint):
        self.checkpoint = checkpoint
        self.exit_status: int | None = None
        self._stop: int | None = None
        self._save = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._module = pl_module
        # Not earlier: Lightning registers a handler of its own before this, which would end the run with status 0.
        # However training ends, Lightning also puts back the handlers that it found.
        handle_signals(dict.fromkeys(EXIT_STATUS, self._note_stop))
        take_save_signals(self._note_save)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stop = self._asked(trainer)
        if pl_module._micro_batch != 0:
            return
        if stop:
            log.warning("stopped by a signal at step %d: saving, then ending", pl_module.train_step)
            self._end(trainer, pl_module)
        elif trainer.strategy.reduce_boolean_decision(self._save, all=False):
            self._save = False
            self.checkpoint.save(trainer, pl_module)
            requeued = slurm.in_job() and trainer.is_global_zero and slurm.requeue_job()
            if trainer.strategy.reduce_boolean_decision(requeued, all=False):
                self._end(trainer, pl_module)

    def _end(self, trainer: pl.Trainer, module: Any) -> None:
        self.exit_status = EXIT_STATUS[signal.Signals(self._stop or signal.SIGTERM)]
        trainer.should_stop = True
        trainer.limit_val_batches = 0  # who stops a run waits for its checkpoint, not for a last validation and demos
        module.interrupted = True

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self._asked(trainer):
            pl_module.interrupted = True
            raise StopIteration  # how Lightning lets a validation step say that there are no more batches

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was asked to stop."""
        return trainer.strategy.reduce_boolean_decision(self._stop is not None, all=False)

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop is not None:
            end_at_once(EXIT_STATUS[signal.Signals(number)])
        self._stop = number
        self._module.told_to_stop = True

    def _note_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True


class StopAtStep(pl.Callback):
    """Ends training after `max_steps` train steps."""

    def __init__(self, max_steps: int):
        self.max_steps = max_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._stop_if_there(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop_if_there(trainer, pl_module)

    def _stop_if_there(self, trainer: pl.Trainer, module: Any) -> None:
        if module.train_step >= self.max_steps:
            trainer.should_stop = True


class StopAtTime(pl.Callback):
    """Ends training at the first step after `max_minutes` of it; a resumed run gets as long again."""

    def __init__(self, max_minutes: float):
        self.max_minutes = max_minutes

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._end = time.monotonic() + 60 * self.max_minutes

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        over = trainer.strategy.reduce_boolean_decision(time.monotonic() >= self._end, all=False)  # ranks must stop together
        if over and pl_module._micro_batch == 0:
            log.info("%g minutes are over at step %d", self.max_minutes, pl_module.train_step)
            trainer.should_stop = True
