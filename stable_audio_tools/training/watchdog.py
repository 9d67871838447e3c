"""A run that stands still ends: a data worker that hangs, a disk that does not answer, another rank that stopped."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from stable_audio_tools.training.stop_signals import end_at_once

log = logging.getLogger(__name__)

LOOKS = 20  # of the thread, within the time that is allowed


class Watchdog(pl.Callback):
    """Ends this process with status 1 once nothing has moved for `limit_s` seconds; says where it stood, with every thread's stack.

    A train step, a validation batch, demos and a checkpoint each have that long. A thread watches, since what hangs cannot; torch
    lets go of Python's lock where it waits for other ranks.

    Args:
        limit_s: chosen long, since demos of a large model take minutes: what hangs hangs for ever.
        trace: file that the stacks go into, beside standard error.
    """

    def __init__(self, limit_s: float, trace: Path):
        self.limit_s, self.trace = limit_s, trace
        self._place, self._since = "", 0.0
        self._over = threading.Event()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._launcher = trainer.strategy.launcher
        self.moved("before the first batch came")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.moved(f"in train step {pl_module.train_step + 1}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.moved(f"after train step {pl_module.train_step}, in demos, in a checkpoint, or waiting for data")

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.moved(f"in batch {batch_idx} of the validation at step {pl_module.train_step}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.moved(f"after the validation at step {pl_module.train_step}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.moved("in the last demos or the last checkpoint")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._over.set()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._over.set()

    def moved(self, place: str) -> None:
        """Note that something got on; what takes long, and is no step, says so itself."""
        self._place, self._since = place, time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(self.limit_s / LOOKS):
            if time.monotonic() - self._since > self.limit_s:
                self._end()

    def _end(self) -> None:
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        log.error("rank %s stands still: nothing has moved for %g s, %s; its stacks are in %s", rank, self.limit_s, self._place, self.trace)
        with self.trace.open("a") as file:
            faulthandler.dump_traceback(file)
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            self._launcher.kill(signal.SIGKILL)  # the ranks that this one started
        end_at_once(1)
