"""Two numbers found by trying: the largest batch that fits the memory, and the learning rate of each optimizer.

Trials train modules of their own, on a loader of their own, so that a run after them is the run without them. Lightning's tuner
would try on the run itself; its range test asks for automatic optimisation, and its batch scaling moves the data's position.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.memory import is_oom_error

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.training.checkpoints import StopAtStep
from stable_audio_tools.training.config import AnyRun
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.plan import largest_batch
from stable_audio_tools.training.step_cost import PAST_WARM_UP

log = logging.getLogger(__name__)

Build = Callable[[], TrainingModule]
Loader = Callable[[int], AudioLoader]
"""A loader of batches of a size, over the run's data."""

GPU_SHARE, CPU_SHARE = 0.92, 0.6  # chosen: a plan is within 15 % of what is used; a machine whose memory is full kills instead of refusing
BACK_OFF = 0.9  # chosen
LEAST_RATE, MOST_RATE, TRIALS = 1e-7, 1.0, 100  # chosen: Adam's usable rates lie well inside
SMOOTHING = 0.95  # chosen: a memory of about 20 losses
DIVERGED = 4.0  # times the lowest loss; chosen, as in Lightning's finder


# the batch


def find_batch_size(
    config: AnyRun, build: Build, loader: Loader, machine: Mapping[str, Any], *, items: int, accumulate: int = 1, memory: int | None = None
) -> int:
    """The largest batch whose train step fits the memory of the one device that trains, at most `items`.

    It is predicted by `plan`; on a GPU some real steps, past any warm-up, confirm it, or else it shrinks until they do. On a CPU,
    where nothing says in time that memory is short, the prediction may fill a smaller share.

    Args:
        build: makes a module to try on.
        machine: Trainer arguments for where and how to compute.
        memory: bytes that may be used; None: a share of what is free.

    Raises:
        ConfigError: several processes train, or not even one clip fits.
    """
    device = _only_device(machine, "--batch-size auto", "give a number; `plan --memory` says which fits")
    limit = memory if memory is not None else _budget(device)
    plan = largest_batch(config, limit, most=items, precision=machine["precision"], accum_batches=accumulate)
    size = plan.batch_size if plan else 0
    while size and device.type == "cuda" and not _fits(build, loader(size), machine):
        size = int(size * BACK_OFF)
    if not size:
        fix = "shorten sample_size, recompute activations, or use a lower --precision"
        raise ConfigError([Problem((), f"{limit / 2**30:.2f} GiB are too little for one clip", fix)], "--batch-size auto")
    log.info("batch size %d: %s", size, "all of the data" if size == items else f"what {limit / 2**30:.2f} GiB of memory hold")
    return size


def _only_device(machine: Mapping[str, Any], flag: str, fix: str) -> torch.device:
    trainer = _trainer(machine)
    if trainer.world_size > 1:
        raise ConfigError([Problem((), f"works on one device, and {trainer.world_size} are to train", fix)], flag)
    return trainer.strategy.root_device


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(CPU_SHARE * _free_memory())


def _free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its container."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, StopIteration):  # another system than Linux
        available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
        free.append(int(available.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(free), 0)


def _fits(build: Build, batches: AudioLoader, machine: Mapping[str, Any]) -> bool:
    """Whether every player can make its step on such batches."""
    try:
        _try_steps(build(), batches, machine)
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        log.info("a batch of %d is too large", batches.batch_size)
        fits = False
    else:
        fits = True
    finally:
        batches.close()
    gc.collect()
    torch.cuda.empty_cache()
    return fits


def _try_steps(module: TrainingModule, batches: AudioLoader, machine: Mapping[str, Any]) -> None:
    """Two steps of each player, the second of which finds the optimizers' states there."""
    module.train_step = PAST_WARM_UP
    steps = 2 * len(module.strategy.players(module.model))
    _trainer(machine, StopAtStep(PAST_WARM_UP + steps)).fit(module, batches)


# the learning rate


@dataclass
class RangeTest:
    """What a player's loss did while its learning rate grew by the same factor at each of its steps. arXiv:1506.01186, section 3.3.

    rates, losses: of each step.
    """

    player: str
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def smoothed(self) -> list[float]:
        """Running means of the losses that weigh recent ones more."""
        total = weight = 0.0
        means = []
        for loss in self.losses:
            total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
            means.append(total / weight)
        return means

    @property
    def diverged(self) -> bool:
        means = self.smoothed
        return bool(means) and not means[-1] <= DIVERGED * abs(min(means))

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss fell most steeply; None where it did not fall."""
        if len(self.rates) < 3:
            return None
        slopes = np.gradient(self.smoothed, np.log(self.rates))[1:-1]  # the ends are seen from one side only
        steepest = int(np.argmin(slopes))
        return self.rates[steepest + 1] if slopes[steepest] < 0 else None


def find_learning_rates(
    build: Build, loader: Loader, machine: Mapping[str, Any], *, batch_size: int, trials: int = TRIALS
) -> list[RangeTest]:
    """A range test of each player, on new weights each time, while the other players train as configured; schedules rest meanwhile.

    Args:
        trials: steps of a player from the least rate to the largest.

    Raises:
        ConfigError: several processes train.
    """
    _only_device(machine, "--find-lr", "give --devices 1; the rates found hold for its batch size")
    first = build()
    players = list(first.strategy.players(first.model))
    return [
        _range_test(player, first if not index else build(), loader(batch_size), machine, trials) for index, player in enumerate(players)
    ]


def _range_test(player: str, module: TrainingModule, batches: AudioLoader, machine: Mapping[str, Any], trials: int) -> RangeTest:
    module.optimizer_groups = {name: group.model_copy(update={"scheduler": None}) for name, group in module.optimizer_groups.items()}
    sweep = _Sweep(player, trials)
    longest = trials * 2 * len(module.optimizer_groups)  # players that take turns, and one that is held back for a while
    _trainer(machine, sweep, StopAtStep(longest)).fit(module, batches)
    batches.close()
    if len(sweep.test.rates) < trials and not sweep.test.diverged:
        log.warning("%s moved in %d of %d steps only, so larger rates were not tried", player, len(sweep.test.rates), module.train_step)
    return sweep.test


class _Sweep(pl.Callback):
    """Lets a player's rate grow, and notes its losses until they explode."""

    def __init__(self, player: str, trials: int):
        self.test = RangeTest(player)
        self.planned = np.geomspace(LEAST_RATE, MOST_RATE, trials).tolist()
        self._loss = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for group in self._optimizer(trainer, pl_module).param_groups:
            group["lr"] = self.planned[len(self.test.rates)]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        self._loss += loss.item()
        if not math.isfinite(self._loss):
            trainer.should_stop = True

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is self._optimizer(trainer, pl_module):
            self.test.rates.append(self.planned[len(self.test.rates)])
            self.test.losses.append(self._loss)
            if self.test.diverged or len(self.test.rates) == len(self.planned):
                trainer.should_stop = True
        self._loss = 0.0

    def _optimizer(self, trainer: pl.Trainer, module: Any) -> torch.optim.Optimizer:
        return trainer.optimizers[list(module.players).index(self.test.player)]


def write_range_tests(tests: list[RangeTest], path: Path) -> None:
    """One row a step: player, learning_rate, loss and its smoothed course."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("player", "learning_rate", "loss", "smoothed"))
        for test in tests:
            writer.writerows((test.player, *row) for row in zip(test.rates, test.losses, test.smoothed, strict=True))


def _trainer(machine: Mapping[str, Any], *callbacks: pl.Callback) -> pl.Trainer:
    """A Trainer that leaves nothing behind."""
    return pl.Trainer(
        **machine,
        max_steps=-1,
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
