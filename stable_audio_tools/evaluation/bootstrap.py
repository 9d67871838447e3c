"""Confidence intervals by drawing clips anew: how much would the number change with other clips from the same source?

Clips are what is drawn, never windows or frames, since these depend on each other within a clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for

from .measure import Better, Measure
from .statistics import Z_95

_TAIL = 0.025
Span = tuple[float, float]
ANY: Span = (-math.inf, math.inf)
AT_LEAST_0: Span = (0.0, math.inf)
SHARE: Span = (0.0, 1.0)
COSINE: Span = (-1.0, 1.0)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made. resamples: 200 place the ends of an interval within about a tenth of its width."""

    resamples: int = 200
    seed: int = 0

    def counts(self, n: int, stream: int = 0) -> Tensor:
        """(R, n) float64: how often each of n clips is in each resample; rows sum to n. `stream` tells sets of clips apart."""
        drawn = torch.randint(n, (self.resamples, n), generator=generator_for(self.seed, stream, n))
        return torch.zeros(self.resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))

    def two_counts(self, first: int, second: int) -> tuple[Tensor, Tensor]:
        """Counts for two sets. Of equally many clips pairs are drawn, so that nothing separates a set from itself in any resample."""
        counts = self.counts(first)
        return counts, counts if first == second else self.counts(second, 1)

    def interval(self, value: float, draws: Tensor, n: int, span: Span = ANY) -> tuple[float, float]:
        """The 95 % interval around a value from its (R,) resamples.

        Their quantiles are taken about their mean, which takes out the bias of resampling: a resample has fewer different clips than
        the set, and is farther from anything. For few clips it is widened as in Hesterberg, arXiv:1411.5279, section 4.3. What lies
        outside of `span`, which no value can, is cut off.
        """
        if not math.isfinite(value) or n < 2:
            return math.nan, math.nan
        low, high = central_range(draws - draws.mean())
        wider = math.sqrt(n / (n - 1)) * student_quantile(n - 1) / Z_95
        return max(span[0], value + wider * min(low, 0.0)), min(span[1], value + wider * max(high, 0.0))

    @property
    def recipe(self) -> dict[str, Any]:
        return {"interval": "95 %, bootstrap over clips", "resamples": self.resamples, "bootstrap_seed": self.seed}

    def mean(
        self,
        name: str,
        values: Tensor,
        recipe: Mapping[str, Any],
        better: Better | None = None,
        unit: str = "",
        span: Span = ANY,
    ) -> Measure:
        """The mean of one (N,) value a clip, all within `span`; what is NaN is left out, and said."""
        real = values[~values.isnan()].double()
        left_out = {"left_out": len(values) - len(real)} if len(real) < len(values) else {}
        recipe = {**recipe, **left_out, **self.recipe}
        if not len(real):
            return Measure(name, math.nan, math.nan, math.nan, 0, recipe, better, unit)
        value = float(real.mean())
        low, high = self.interval(value, self.counts(len(real)) @ real / len(real), len(real), span)
        return Measure(name, value, low, high, len(real), recipe, better, unit)


def central_range(draws: Tensor) -> tuple[float, float]:
    """What holds one more draw like these (R,) with 95 %: from the rank of 0.025 (R + 1), or the least draw, to that from above."""
    rank = max(1, math.floor(_TAIL * (len(draws) + 1)))
    ordered = draws.sort()[0]
    return float(ordered[rank - 1]), float(ordered[-rank])


def student_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t, by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5); exact for 1 and 2."""
    if freedom <= 2:
        return (12.706205, 4.302653)[freedom - 1]
    z, f = Z_95, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / f ** (power + 1) for power, term in enumerate(terms))
