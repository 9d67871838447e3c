"""One metric, watched at each validation or evaluation: the best weights are kept, and a run that no longer gets better ends.

All state is the metric's history. It is in every checkpoint, and in `monitor.json` beside them, since a checkpoint of the step at
which validation is due is written before that validation.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.training.checkpoints import RunCheckpoint, give_second_name
from stable_audio_tools.training.run_folder import write_json

log = logging.getLogger(__name__)

EVALUATED = "eval/"  # what names of metrics begin with that evaluations measure, and not validations
Mode = Literal["min", "max"]
History = dict[int, float]
"""Train step to the metric's value there."""


@dataclass(frozen=True)
class Goal:
    """What is better, and how long to wait for it.

    metric: its name in `metrics.csv`. mode: whether less or more of it is better.
    save_best: checkpoints to keep for being the best; 0: none.
    patience: validations, or evaluations, in a row without a new best after which the run ends; 0: it goes on.
    min_delta: by how much a new best has to be better, to count as one for the patience.
    """

    metric: str = "val/loss"
    mode: Mode = "min"
    save_best: int = 1
    patience: int = 0
    min_delta: float = 0.0

    @property
    def is_evaluated(self) -> bool:
        """Whether evaluations measure it, and not validations."""
        return self.metric.startswith(EVALUATED)

    def rank(self, value: float) -> float:
        """A number that is lower for what is better; infinity for what is no number."""
        if not math.isfinite(value):
            return math.inf
        return value if self.mode == "min" else -value

    def waited(self, values: Sequence[float]) -> int:
        """How many of the last `values` brought no new best."""
        best, waited = math.inf, 0
        for rank in map(self.rank, values):
            if rank < best - self.min_delta:
                best, waited = rank, 0
            else:
                waited += 1
        return waited


class ValidationMonitor(pl.Callback):
    """Keeps the best checkpoints, and ends a run that gets no better.

    `best_step=00000100_val_loss=0.1234.ckpt` files are second names of the run's checkpoints, which retention does not remove, and
    `best.ckpt` of the best of them. A value that is not finite is never the best. A run that ends so is saved as it is, and a resumed
    run counts on.

    Args:
        checkpoint: writes the run's checkpoints.
        export: called with the training module, on every rank, when there is a new best.
    """

    def __init__(self, goal: Goal, checkpoint: RunCheckpoint, export: Callable[[Any], None]):
        self.goal, self.checkpoint, self.export = goal, checkpoint, export
        self.history: History = {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(metric=self.goal.metric, mode=self.goal.mode)  # the history of another metric is of no use

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.history), "values": list(self.history.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = dict(zip(state["steps"], state["values"], strict=True))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        recorded = {step: value for step, value in self._read().items() if step <= pl_module.train_step} if pl_module.train_step else {}
        self.history = trainer.strategy.broadcast(dict(sorted((recorded | self.history).items())))
        self._stop_if_waited(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or pl_module.interrupted or self.goal.is_evaluated:
            return
        self.judge(trainer, pl_module, trainer.callback_metrics)

    def judge(self, trainer: pl.Trainer, module: Any, metrics: Mapping[str, Any]) -> None:
        """Take in what was measured at this step, on every rank.

        Raises:
            ConfigError: the goal's metric is not among it.
        """
        step = module.train_step
        self.history[step] = trainer.strategy.broadcast(self._value(metrics))
        best = trainer.strategy.broadcast(self._best_steps())
        stops = self._stop_if_waited(trainer)
        if step in best or stops:
            self.checkpoint.save(trainer, module)
        if trainer.is_global_zero:
            self._record(best)
        if best and best[0] == step:
            self.export(module)

    def _value(self, metrics: Mapping[str, Any]) -> float:
        """
        Raises:
            ConfigError: there is no such metric.
        """
        if self.goal.metric not in metrics:
            known = [name for name in metrics if "/" in name]
            raise ConfigError([Problem((), "no such metric", did_you_mean(self.goal.metric, known))], f"--monitor {self.goal.metric}")
        value = float(metrics[self.goal.metric])
        if not math.isfinite(value):
            log.warning("%s is %s: this counts as no improvement", self.goal.metric, value)
        return value

    def _stop_if_waited(self, trainer: pl.Trainer) -> bool:
        waited = self.goal.waited(list(self.history.values()))
        if not self.goal.patience or waited < self.goal.patience:
            return False
        times = "evaluations" if self.goal.is_evaluated else "validations"
        log.info("%s has not improved in %d %s: the run ends", self.goal.metric, waited, times)
        trainer.should_stop = True
        return True

    # files

    @property
    def _path(self) -> Path:
        return self.checkpoint.folder / "monitor.json"

    def _file(self, step: int) -> Path:
        metric = re.sub(r"[^\w.-]+", "_", self.goal.metric)
        return self.checkpoint.folder / f"best_step={step:08d}_{metric}={self.history[step]:.6g}.ckpt"

    def _best_steps(self) -> list[int]:
        """Steps whose checkpoints are to be kept, the best first: the newest validation's, or those that have a file."""
        newest = max(self.history)
        candidates = [
            step for step, value in self.history.items() if math.isfinite(value) and (step == newest or self._file(step).exists())
        ]
        return sorted(candidates, key=lambda step: (self.goal.rank(self.history[step]), step))[: self.goal.save_best]

    def _record(self, best: Sequence[int]) -> None:
        """Write the history down and bring the files in line with `best`; a disk that refuses is said, and training goes on."""
        try:
            write_json(self._path, {"metric": self.goal.metric, "mode": self.goal.mode, "history": _as_json(self.history)})
            if self.checkpoint.unsaved:
                return  # the new best is not there to take the place of what is
            if max(self.history) in best:
                give_second_name(self.checkpoint.folder / "last.ckpt", self._file(max(self.history)))
            if best and self._file(best[0]).exists():
                give_second_name(self._file(best[0]), self.checkpoint.folder / "best.ckpt")
            for step in set(self.history) - set(best):
                self._file(step).unlink(missing_ok=True)
        except OSError as error:
            log.error("the best checkpoint could not be renewed: %s; training goes on", error)

    def _read(self) -> History:
        """The history that an earlier process of this run wrote down."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        same = (found["metric"], found["mode"]) == (self.goal.metric, self.goal.mode)
        return {step: math.nan if value is None else value for step, value in found["history"]} if same else {}


def _as_json(history: History) -> list[tuple[int, float | None]]:
    """Pairs of step and value; JSON has no word for what is not finite."""
    return [(step, value if math.isfinite(value) else None) for step, value in history.items()]
