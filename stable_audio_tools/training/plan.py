"""What a run will need, said before anything is trained: parameters, operations, memory by kind, disk, the largest batch.

Nothing here allocates a weight or reads data; see `step_cost.py` for how a step is counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from stable_audio_tools.models.conditioners import Conditioner
from stable_audio_tools.training.config import AnyRun
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.parts import Part, parts_of
from stable_audio_tools.training.step_cost import Turn, measure_turns, size_of


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a train step.

    weights: of the model, of a discriminator and the like, buffers included.
    average: the exponential moving average.
    optimizer: its states, of all players.
    gradients: of the player that has most.
    activations: what the step needs besides, at most.
    total: the most at once, which is less than the sum where gradients come as activations go.
    """

    weights: int
    average: int
    optimizer: int
    gradients: int
    activations: int
    total: int


@dataclass(frozen=True)
class Plan:
    """What a run needs on each device.

    flops: of one train step, averaged over the players that alternate.
    turns: each player's step by itself.
    checkpoint, export: bytes of a file on disk.
    uncounted: conditioners whose frozen network is loaded when training starts, and whose memory is not known before.
    """

    batch_size: int
    precision: str
    parts: tuple[Part, ...]
    flops: int
    memory: Memory
    turns: tuple[Turn, ...]
    checkpoint: int
    export: int
    uncounted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(config: AnyRun, *, batch_size: int = 1, precision: str = "32-true", accum_batches: int = 1) -> Plan:
    """The plan of a run with `batch_size` clips a batch on each device.

    Args:
        accum_batches: batches a step; above 1 the gradients of a step lie beside the activations of its next batch.
    """
    with torch.device("meta"):
        module = create_training_wrapper_from_config(config, config.build())
    parts = parts_of(module)
    turns = tuple(measure_turns(module, config, batch_size, precision))
    memory = _memory(module, turns, accumulates=accum_batches > 1)
    flops = sum(turn.flops for turn in turns) // len(turns) * accum_batches
    export = size_of(module.sampling_model.state_dict().values())
    checkpoint = memory.weights + memory.average + memory.optimizer
    return Plan(batch_size, precision, parts, flops, memory, turns, checkpoint, export, _loaded_later(module))


def largest_batch(
    config: AnyRun, limit: int, *, most: int | None = None, precision: str = "32-true", accum_batches: int = 1
) -> Plan | None:
    """The plan of the largest batch whose step fits `limit` bytes, of `most` clips if given; None: not even one clip does."""

    def plan(size: int) -> Plan:
        return make_plan(config, batch_size=size, precision=precision, accum_batches=accum_batches)

    fits: Plan | None = None
    size = 1
    while (over := plan(size if most is None else min(size, most))).memory.total <= limit:
        if over.batch_size == most:
            return over
        fits, size = over, size * 2
    while fits is not None and over.batch_size - fits.batch_size > 1:
        # Memory is convex in the batch, so what is interpolated fits; rounding down, the next size is worth a look.
        share = (limit - fits.memory.total) / (over.memory.total - fits.memory.total)
        step = int(share * (over.batch_size - fits.batch_size))
        between = plan(fits.batch_size + max(1, min(step, over.batch_size - fits.batch_size - 1)))
        fits, over = (between, over) if between.memory.total <= limit else (fits, between)
    return fits


def _loaded_later(module: TrainingModule) -> tuple[str, ...]:
    conditioner = getattr(module.model, "conditioner", None)
    named = {} if conditioner is None else conditioner.conditioners
    return tuple(name for name, part in named.items() if type(part).stand_in is not Conditioner.stand_in)


def _memory(module: TrainingModule, turns: tuple[Turn, ...], *, accumulates: bool) -> Memory:
    averages = size_of(t for average, _ in module.averages().values() for t in average.state_dict().values())
    weights = size_of((*module.parameters(), *module.buffers())) - averages
    optimizer = sum(turn.optimizer for turn in turns)
    gradients = max(turn.gradients for turn in turns)
    step = max(turn.gradients + turn.activations if accumulates else max(turn.peak, turn.gradients) for turn in turns)
    return Memory(weights, averages, optimizer, gradients, max(turn.activations for turn in turns), weights + averages + optimizer + step)
