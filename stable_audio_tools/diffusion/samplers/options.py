"""What a sampler lets a user choose, in a form that a command line or a page can show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stable_audio_tools.configs.errors import Problem


@dataclass(frozen=True)
class Option:
    """A number that a sampler takes.

    help: one line. low, high: the closed range. whole: it counts something.
    """

    default: float
    help: str
    low: float
    high: float
    whole: bool = False

    def problem(self, name: str, value: object) -> Problem | None:
        """What is wrong with a value, if anything."""
        kind = "whole number" if self.whole else "number"
        fits = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        if fits and math.isfinite(value) and self.low <= value <= self.high:  # type: ignore[arg-type, operator]
            return None
        return Problem((), f"{name} is {value!r}", f"give a {kind} from {self.low:g} to {self.high:g}; default {self.default:g}")


Options = Mapping[str, Option]

RATIO_OPTIONS: Options = {
    "sigma_min": Option(0.01, "last ratio of noise to data, from which the last step goes to clean data", 1e-5, 1e3),
    "sigma_max": Option(100.0, "first ratio of noise to data; with init audio, how much noise it gets", 1e-4, 1e5),
    "rho": Option(1.0, "above 1, more of the steps are near sigma_min", 0.1, 10.0),
}
"""Of samplers that step in ratios of noise to data: what `diffusion.grids.Ratios` is made of."""


def eta(default: float, high: float = 1.0) -> Options:
    return {"eta": Option(default, "share of fresh noise: 0 is deterministic", 0.0, high)}
