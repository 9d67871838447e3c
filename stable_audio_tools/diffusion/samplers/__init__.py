"""The samplers by name, each with the objectives it fits. A new one is a function in this folder and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

from ..grids import Ratios, schedule
from ..objectives import Objective, RectifiedFlow, VPrediction
from ..timesteps import DistributionShift
from .base import Callback, Field, Generators, Prediction, SampleFunction, Step, make_field, noise_like
from .ddim import ddim, pingpong
from .dpm_solver import k_dpm_adaptive, k_dpm_fast
from .multistep import dpmpp_2m, dpmpp_3m
from .options import RATIO_OPTIONS, Option, Options, eta
from .ratios import k_dpm_2, k_dpmpp_2s_ancestral, k_heun, k_lms
from .velocity import euler, heun, rk4

__all__ = [
    "SAMPLERS",
    "Callback",
    "ChosenSampler",
    "Field",
    "Generators",
    "Option",
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
    help: one line for who is to choose.
    own_options: its own keyword arguments.
    cfgpp: it is to follow the noise of the unconditional prediction while it denoises with guidance. arXiv:2406.08070, algorithm 2.
    ratios: it steps in ratios of noise to data, so that it starts where they are finite and a user may name them.
    """

    function: SampleFunction
    objectives: tuple[type[Objective], ...]
    help: str = ""
    own_options: Options = field(default_factory=dict)
    cfgpp: bool = False
    ratios: bool = False

    @property
    def options(self) -> dict[str, Option]:
        """All that a user may choose, by name."""
        return {**self.own_options, **(RATIO_OPTIONS if self.ratios else {})}

    def fits(self, objective: Objective) -> bool:
        return isinstance(objective, self.objectives)


_FLOW, _V, _BOTH = (RectifiedFlow,), (VPrediction,), (VPrediction, RectifiedFlow)
_ORDER: Options = {"order": Option(4, "how many slopes its polynomial goes through", 1, 4, whole=True)}
_TOLERANCES: Options = {
    "rtol": Option(0.01, "largest error of a step relative to the state; decides how many steps there are", 1e-6, 1.0),
    "atol": Option(0.01, "largest error of a step where the state is small", 1e-6, 1.0),
}

SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(euler, _BOTH, "first order, one evaluation a step"),
    "heun": Sampler(heun, _BOTH, "second order, two evaluations a step"),
    "rk4": Sampler(rk4, _BOTH, "fourth order, four evaluations a step"),
    "dpmpp": Sampler(dpmpp_2m, _FLOW, "DPM-Solver++ 2M on the flow's own schedule: second order, one evaluation a step"),
    "pingpong": Sampler(pingpong, _BOTH, "for models distilled to a few steps: denoises fully, then adds fresh noise"),
    "euler-cfgpp": Sampler(ddim, _FLOW, "CFG++: guidance that stays near the data, with scales below 1", cfgpp=True),
    "v-ddim": Sampler(ddim, _V, "first order, one evaluation a step", eta(0.0)),
    "v-ddim-cfgpp": Sampler(ddim, _V, "CFG++: guidance that stays near the data, with scales below 1", eta(0.0), cfgpp=True),
    "dpmpp-2m": Sampler(dpmpp_2m, _BOTH, "DPM-Solver++ 2M: second order, one evaluation a step", ratios=True),
    "dpmpp-2m-sde": Sampler(dpmpp_2m, _BOTH, "DPM-Solver++ 2M with fresh noise: one evaluation a step", eta(1.0, high=2.0), ratios=True),
    "dpmpp-3m-sde": Sampler(
        dpmpp_3m, _BOTH, "DPM-Solver++ 3M with fresh noise, one evaluation a step; wants 30 steps or more", eta(1.0, high=2.0), ratios=True
    ),
    "k-heun": Sampler(k_heun, _BOTH, "second order, two evaluations a step; wants 20 steps or more", ratios=True),
    "k-lms": Sampler(k_lms, _BOTH, "linear multistep, one evaluation a step; wants 30 steps or more", _ORDER, ratios=True),
    "k-dpmpp-2s-ancestral": Sampler(
        k_dpmpp_2s_ancestral, _BOTH, "second order with fresh noise, two evaluations a step; wants 30 steps or more", eta(1.0), ratios=True
    ),
    "k-dpm-2": Sampler(k_dpm_2, _BOTH, "second order, two evaluations a step; wants 20 steps or more", ratios=True),
    "k-dpm-fast": Sampler(k_dpm_fast, _BOTH, "third order, as many evaluations as steps", ratios=True),
    "k-dpm-adaptive": Sampler(
        k_dpm_adaptive, _BOTH, "as many steps as its tolerances ask for, whatever the number of steps", _TOLERANCES, ratios=True
    ),
}


@dataclass(frozen=True)
class ChosenSampler:
    """A sampler for one objective, with the options that a user gave it.

    given: those; the others have their defaults.
    """

    name: str
    sampler: Sampler
    objective: Objective
    given: Mapping[str, float]

    @property
    def cfgpp(self) -> bool:
        return self.sampler.cfgpp

    def schedule(self, steps: int, *, length: int, shift: DistributionShift | None = None, noise_level: float = 1.0) -> Tensor:
        """`diffusion.grids.schedule` for this sampler, from `noise_level` down.

        The state to start from is `objective.add_noise(data, noise, ts[0])`, with zeros where there are no data.

        Raises:
            ConfigError: the shift has no levels for this length or start, or `noise_level` and the option `sigma_max` are both given.
            ValueError: no steps, or a start outside (0, 1].
        """
        ratios = self._ratios(noise_level) if self.sampler.ratios else None
        return schedule(self.objective, steps, length=length, shift=shift, sigma_max=noise_level, ratios=ratios)

    def sample(self, field: Field, x: Tensor, ts: Tensor, *, generator: Generators = None, callback: Callback | None = None) -> Tensor:
        """Carry x (B, C, T) from ts[0] to ts[-1]; see `samplers.base`."""
        own = {name: self.given.get(name, option.default) for name, option in self.sampler.own_options.items()}
        return self.sampler.function(field, x, ts, objective=self.objective, generator=generator, callback=callback, **own)

    def _ratios(self, noise_level: float) -> Ratios:
        if noise_level > 1:
            message = f"init_noise_level is {noise_level:g}, and at 1 nothing is left of the audio"
            raise _error(message, f"give 0 to 1; a ratio of noise to audio, as upstream has it, is sigma_max={noise_level:g}")
        if noise_level != 1 and "sigma_max" in self.given:
            raise _error("init_noise_level and sigma_max both say where to start", "give one of them")
        named = {name: value for name, value in self.given.items() if name in RATIO_OPTIONS}
        return Ratios(**named, named=bool(named))


def register_sampler(name: str, sampler: Sampler) -> None:
    """Add a sampler, from a plugin.

    Raises:
        ValueError: the name is taken.
    """
    if SAMPLERS.setdefault(name, sampler) is not sampler:
        raise ValueError(f"sampler {name!r} is already registered")


def find_sampler(name: str | None, objective: Objective, options: Mapping[str, Any] | None = None) -> ChosenSampler:
    """The sampler of this name, or the objective's own for None, with options.

    Raises:
        ConfigError: there is no such sampler, it does not fit the objective, or it does not take one of the options or its value.
    """
    name, options = objective.default_sampler if name is None else name, options or {}
    fitting = objective.samplers
    if name not in SAMPLERS:
        raise _error(f"unknown sampler {name!r}", did_you_mean(name, fitting))
    if name not in fitting:
        raise _error(f"sampler {name!r} does not fit the objective {objective.name!r}", f"use one of {', '.join(fitting)}")
    sampler = SAMPLERS[name]
    if unknown := [option for option in options if option not in sampler.options]:
        raise _error(f"sampler {name!r} has no option {', '.join(unknown)}", _takes(sampler, unknown, fitting))
    if problems := [problem for option, value in options.items() if (problem := sampler.options[option].problem(option, value))]:
        raise ConfigError(problems, source=f"sampler {name}")
    return ChosenSampler(name, sampler, objective, dict(options))


def _takes(sampler: Sampler, unknown: list[str], fitting: tuple[str, ...]) -> str:
    takes = f"it takes {', '.join(sampler.options)}" if sampler.options else "it takes no options"
    others = [name for name in fitting if all(option in SAMPLERS[name].options for option in unknown)]
    return f"{takes}; taken by {', '.join(others)}" if others else takes


def _error(message: str, fix: str) -> ConfigError:
    return ConfigError([Problem((), message, fix)], source="sampler")
