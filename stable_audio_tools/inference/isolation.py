"""Sampling that leaves no trace: every item draws from its own stream, and modes and global generators are as they were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.seeds import derive_seed

log = logging.getLogger(__name__)

Stream = tuple[int, int]
"""Seed and index of an item; see `diffusion.seeds`."""


def item_streams(seed: int | Sequence[int], batch_size: int) -> list[Stream]:
    """The random stream of each item.

    Args:
        seed: -1 for a fresh one, which is logged. A sequence gives each item its own seed, as if it were made alone.

    Raises:
        ValueError: as many seeds as items are needed.
    """
    if not isinstance(seed, int):
        if len(seed) != batch_size:
            raise ValueError(f"{len(seed)} seeds for {batch_size} items; give one for each")
        return [(each, 0) for each in seed]
    seed = chosen_seed(seed)
    return [(seed, index) for index in range(batch_size)]


def chosen_seed(seed: int) -> int:
    """The seed itself, or for -1 a fresh one, which is logged."""
    if seed == -1:
        seed = torch.Generator().seed() & 0x7FFFFFFF
        log.info("seed %d", seed)
    return seed


@contextmanager
def isolated(model: nn.Module, stream: Stream) -> Iterator[None]:
    """Inside, the model is in eval mode, no graph is made, and the global generators are the stream's own."""
    with torch.no_grad(), evaluation_mode(model), isolated_generators(weight_of(model).device, derive_seed(*stream)):
        yield


def weight_of(model: nn.Module) -> Tensor:
    """A weight, whose device and precision are the model's; of a model without weights, an empty tensor on the CPU."""
    return next(model.parameters(), torch.empty(0))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in eval mode, and give each its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def isolated_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, the global generators of the CPU and of `device` start from `seed`; outside they have not moved."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_global(seed, device)
        yield


def seed_global(seed: int, device: torch.device) -> None:
    """Start the global generators of the CPU and of `device`; call it inside `isolated_generators`."""
    # Not torch.manual_seed, which would move the generators of every other GPU too.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def each_isolated(function: Callable[[Tensor], Tensor], x: Tensor, streams: Sequence[Stream], device: torch.device) -> Tensor:
    """`function` of each item alone, whose draws from the global generators are then its own stream's; call it inside `isolated`."""
    results = []
    for item, stream in zip(x.split(1), streams, strict=True):
        seed_global(derive_seed(*stream), device)
        results.append(function(item))
    return torch.cat(results)
