"""The samplers by name, each with the objectives it fits. A new one is a function in this folder and a line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

from ..objectives import Objective, RectifiedFlow, VPrediction
from .base import Callback, Field, Generators, Prediction, SampleFunction, Step, make_field, noise_like
from .ddim import v_ddim
from .flow import dpmpp, euler, heun, pingpong, rk4

__all__ = [
    "SAMPLERS",
    "Callback",
    "Field",
    "Generators",
    "Prediction",
    "SampleFunction",
    "Sampler",
    "Step",
    "find_sampler",
    "make_field",
    "noise_like",
    "register_sampler",
]


@dataclass(frozen=True)
class Sampler:
    """A sampling function and what it is for.

    objectives: the kinds of objective whose path it follows.
    options: names of its own keyword arguments.
    cfgpp: it is to follow the noise of the unconditional prediction while it denoises with guidance. arXiv:2406.08070, algorithm 2.
    """

    function: SampleFunction
    objectives: tuple[type[Objective], ...]
    options: tuple[str, ...] = ()
    cfgpp: bool = False

    def fits(self, objective: Objective) -> bool:
        return isinstance(objective, self.objectives)


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(euler, (RectifiedFlow,)),
    "heun": Sampler(heun, (RectifiedFlow,)),
    "rk4": Sampler(rk4, (RectifiedFlow,)),
    "dpmpp": Sampler(dpmpp, (RectifiedFlow,)),
    "pingpong": Sampler(pingpong, (RectifiedFlow,)),
    "v-ddim": Sampler(v_ddim, (VPrediction,), ("eta",)),
    "v-ddim-cfgpp": Sampler(v_ddim, (VPrediction,), ("eta",), cfgpp=True),
}


def register_sampler(name: str, sampler: Sampler) -> None:
    """Add a sampler, from a plugin.

    Raises:
        ValueError: the name is taken.
    """
    if SAMPLERS.setdefault(name, sampler) is not sampler:
        raise ValueError(f"sampler {name!r} is already registered")


def find_sampler(name: str | None, objective: Objective, options: dict[str, Any] | None = None) -> Sampler:
    """The sampler of this name, or the objective's own for None.

    Args:
        options: keyword arguments meant for it; only their names are checked.

    Raises:
        ConfigError: there is no such sampler, it does not fit the objective, or it does not take one of the options.
    """
    name = objective.default_sampler if name is None else name
    fitting = objective.samplers
    if name not in SAMPLERS:
        raise _error(f"unknown sampler {name!r}", did_you_mean(name, fitting))
    if name not in fitting:
        raise _error(f"sampler {name!r} does not fit the objective {objective.name!r}", f"use one of {', '.join(fitting)}")
    sampler = SAMPLERS[name]
    if unknown := [option for option in options or {} if option not in sampler.options]:
        takes = f"it takes {', '.join(sampler.options)}" if sampler.options else "it takes no options"
        raise _error(f"sampler {name!r} has no option {', '.join(unknown)}", takes)
    return sampler


def _error(message: str, fix: str) -> ConfigError:
    return ConfigError([Problem((), message, fix)], source="sampler")
