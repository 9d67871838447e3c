"""What a person sees while training runs: a bar with loss, steps a second and time left; plain lines where output is no terminal."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class RunProgress(pl.Callback):
    """Counts train steps up to `max_steps` (None: no end in sight)."""

    def __init__(self, max_steps: int | None):
        self.max_steps = max_steps
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._start, self._start_step = time.monotonic(), pl_module.train_step
        self._next_line = self._start + LINE_EVERY_S
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=self.max_steps, initial=pl_module.train_step, unit="step", dynamic_ncols=True, smoothing=0.05)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._losses(trainer), refresh=False)
            self._bar.update(pl_module.train_step - self._bar.n)
        elif trainer.is_global_zero and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            log.info("%s", self._line(trainer, pl_module.train_step))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if trainer.is_global_zero:
            log.info("%s", self._line(trainer, pl_module.train_step))

    def _line(self, trainer: pl.Trainer, step: int) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (step - self._start_step) / elapsed
        parts = [f"step {step}" + (f"/{self.max_steps}" if self.max_steps else ""), self._losses(trainer), f"{rate:.2f} steps/s"]
        if self.max_steps and rate > 0:
            parts.append(f"{_clock((self.max_steps - step) / rate)} left")
        return ", ".join(part for part in parts if part)

    @staticmethod
    def _losses(trainer: pl.Trainer) -> str:
        metrics = trainer.callback_metrics
        return ", ".join(f"{name} {float(metrics[name]):.4f}" for name in ("train/loss", "val/loss") if name in metrics)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
