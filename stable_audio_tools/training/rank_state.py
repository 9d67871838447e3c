"""What each process of a run has for itself, and a checkpoint therefore holds once for every rank.

Weights, optimizers and counters are the same on all ranks. Generators are not, and neither is what parts of a strategy keep as
extra state, such as the position of a timestep sequence or the trajectories of a warm-up; nor are metrics that wait to be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import distributed, nn

from stable_audio_tools.training.rng import restore_rng, rng_state


def gathered(own: Any) -> list[Any]:
    """What all processes pass, in the order of ranks. Every process must make the call."""
    if not distributed.is_available() or not distributed.is_initialized():
        return [own]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    found[distributed.get_rank()] = own  # not its copy: a file holds a tensor once that is in it twice
    return found


def gathered_by_first(own: Any) -> list[Any]:
    """As `gathered`, on the first process alone, which spares the others what may be large; they get nothing."""
    if not distributed.is_available() or not distributed.is_initialized():
        return [own]
    found: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(own, found)
    return found or []


def rank_state(strategy: nn.Module, **more: Any) -> dict[str, Any]:
    """What this process has for itself, with `more` that the caller will restore, on the CPU."""
    return move_data_to_device({"rng": rng_state(), "strategy": _extra_states(strategy), **more}, "cpu")


def restore_rank(state: Mapping[str, Any], strategy: nn.Module) -> None:
    """Go on as the process that `rank_state` is of."""
    restore_rng(state["rng"])
    modules = dict(strategy.named_modules())
    for name, extra in state["strategy"].items():
        modules[name].set_extra_state(extra)


def _extra_states(module: nn.Module) -> dict[str, Any]:
    own = {name: part for name, part in module.named_modules() if type(part).get_extra_state is not nn.Module.get_extra_state}
    return {name: part.get_extra_state() for name, part in own.items()}
