"""Measures the weights in training every N train steps: `training.evaluation`.

The clips are made from the sampling weights (EMA where there are any), with random numbers of their own, and are shared out among the
processes; where weights are shared out, all processes make all clips. The first process measures them. What it finds is logged as
`eval/<name>`, which `--monitor` may name, and added as a line to `evaluations.jsonl`. Written policy: an evaluation that fails in some
process is logged with its traceback, and training goes on.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import lightning.pytorch as pl
import torch

from stable_audio_tools.evaluation.measure import Measure
from stable_audio_tools.inference.generation import evaluation_mode
from stable_audio_tools.models.atomic_file import atomic_file
from stable_audio_tools.training.demos.base import isolated_random_state
from stable_audio_tools.training.monitor import EVALUATED
from stable_audio_tools.training.parallel import FullyShardedStrategy
from stable_audio_tools.training.rank_state import gathered_by_first
from stable_audio_tools.training.stop_signals import Interrupted, interruptible

log = logging.getLogger(__name__)

FILE = "evaluations.jsonl"
T = TypeVar("T")


class Evaluation(Protocol):
    """What is measured of a training module's sampling weights, in two steps."""

    def make(self, module: Any, rank: int, world_size: int, moved: Callable[[], None]) -> list[Any]:
        """This process's share of what is to be measured; `moved` is called whenever it gets on."""

    def measure(self, module: Any, shares: Sequence[list[Any]]) -> Sequence[Measure]:
        """All measures, from the shares of all processes, in the order of ranks."""


class EvaluationCallback(pl.Callback):
    """Evaluates on schedule, and when training ends.

    Args:
        every: train steps between two evaluations.
        folder: of the run; `evaluations.jsonl` goes there.
        judge: told of each evaluation that did not fail, on every rank: the trainer, the module, and the values by name.
        moved: called whenever the evaluation gets on, so that nobody takes it for a standstill.
    """

    def __init__(
        self,
        every: int,
        evaluation: Evaluation,
        folder: Path,
        *,
        judge: Callable[[pl.Trainer, Any, Mapping[str, float]], None] | None = None,
        moved: Callable[[str], None] | None = None,
    ):
        self.every, self.evaluation, self.path = every, evaluation, folder / FILE
        self.judge, self.moved = judge, moved
        self._last: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._last = pl_module.train_step
        if trainer.is_global_zero:
            forget_after(self.path, pl_module.train_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.train_step % self.every == 0 or trainer.should_stop:
            self.show(trainer, pl_module, send=pl_module.log_metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.show(trainer, pl_module, send=pl_module.send_metrics)  # Lightning's own table is closed by now

    def show(self, trainer: pl.Trainer, module: Any, *, send: Callable[[Mapping[str, float]], None]) -> None:
        """Measure this step, unless that is done or the run is being stopped."""
        if module.train_step == self._last or module.interrupted:
            return
        self._last = module.train_step
        measured = trainer.strategy.broadcast(self._measured(trainer, module))
        if measured is None:
            return
        values = {EVALUATED + each.name: each.value for each in measured}
        send({name: value for name, value in values.items() if math.isfinite(value)})
        if trainer.is_global_zero:
            self._record(module.train_step, measured)
        if self.judge is not None:
            self.judge(trainer, module, values)

    def _measured(self, trainer: pl.Trainer, module: Any) -> list[Measure] | None:
        """On the first process; None elsewhere, and where something failed."""
        together = isinstance(trainer.strategy, FullyShardedStrategy)
        rank, world_size = (0, 1) if together else (trainer.global_rank, trainer.world_size)
        share = self._tried(module, lambda: self.evaluation.make(module, rank, world_size, self._moved), together=together)
        shares = [share] if world_size == 1 else gathered_by_first(share)
        good = [each for each in shares if each is not None]
        if not trainer.is_global_zero or len(good) < world_size:
            return None
        return self._tried(module, lambda: list(self.evaluation.measure(module, good)), together=together)

    def _tried(self, module: Any, work: Callable[[], T], *, together: bool) -> T | None:
        """None: it failed, or was given up. Processes that wait for each other inside of it end it together."""
        try:
            with (
                torch.no_grad(),
                isolated_random_state(),
                evaluation_mode(module.sampling_model),
                interruptible(lambda: module.told_to_stop and not together),
            ):
                return work()
        except Interrupted:
            log.info("the evaluation at step %d is left out, since training is to end", module.train_step)
        except Exception:
            log.exception("the evaluation at step %d failed; training goes on", module.train_step)
        return None

    def _moved(self) -> None:
        if self.moved is not None:
            self.moved("in an evaluation")

    def _record(self, step: int, measured: Sequence[Measure]) -> None:
        log.info("step %d: %s", step, ", ".join(str(each) for each in measured))
        line = json.dumps({"step": step, "metrics": [each.to_dict() for each in measured]}, allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            log.error("%s cannot be written: %s; training goes on", self.path, error.strerror or error)


def forget_after(path: Path, step: int) -> None:
    """Drop the lines beyond `step`, from which a run is resumed, so that the file tells the history of the weights."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if _step(line) <= step]
    if kept != lines:
        with atomic_file(path) as file:
            file.write("".join(kept).encode())


def _step(line: str) -> int:
    """The step of a line, beyond all others where the line is broken off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62
