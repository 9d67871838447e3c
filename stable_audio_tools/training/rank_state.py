"""What each process of a run has for itself, and a checkpoint therefore holds once for every rank.

Weights, optimizers and counters are the same on all ranks. Generators are not, and neither is what parts of a strategy keep as
extra state, such as the position of a timestep sequence or the trajectories of a warm-up.
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


def rank_states(strategy: nn.Module) -> list[dict[str, Any]]:
    """The state of every rank, on the CPU. Every process must make the call."""
    return gathered(move_data_to_device({"rng": rng_state(), "strategy": _extra_states(strategy)}, "cpu"))


def restore_rank(state: Mapping[str, Any], strategy: nn.Module) -> None:
    """Go on as the rank that `state` is of."""
    restore_rng(state["rng"])
    modules = dict(strategy.named_modules())
    for name, extra in state["strategy"].items():
        modules[name].set_extra_state(extra)


def _extra_states(module: nn.Module) -> dict[str, Any]:
    own = {name: part for name, part in module.named_modules() if type(part).get_extra_state is not nn.Module.get_extra_state}
    return {name: part.get_extra_state() for name, part in own.items()}
