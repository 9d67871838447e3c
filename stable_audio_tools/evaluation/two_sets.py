"""A distance between two sets as a measure: its interval, and the range that it has where both sets come from one source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for

from .bootstrap import AT_LEAST_0, Bootstrap, Span, central_range
from .measure import Measure

SMALLEST = 2  # clips of a set; fewer have no spread
_DEALS = 2  # a random stream beside those of the bootstrap

Resampled = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Two sets (N, ...), (M, ...) and how often each member is taken, (R, N), (R, M), to (R,) distances."""


def between(
    name: str,
    first: Tensor,
    second: Tensor,
    resampled: Resampled,
    bootstrap: Bootstrap,
    recipe: Mapping[str, Any],
    *,
    span: Span = AT_LEAST_0,
    unit: str = "",
) -> Measure:
    """The distance of two sets of float64, one row a clip; less is better. NaN where a set has fewer than two clips.

    Args:
        span: the smallest and the largest value that the distance can have.
    """
    n, recipe = min(len(first), len(second)), {**recipe, **bootstrap.recipe}
    if n < SMALLEST:
        return Measure(name, math.nan, math.nan, math.nan, n, recipe, "lower", unit)
    value = float(resampled(first, second, *(rows.new_ones(1, len(rows)) for rows in (first, second))))
    low, high = bootstrap.interval(value, resampled(first, second, *bootstrap.two_counts(len(first), len(second))), n, span)
    dealt = _dealt(first, second, resampled, bootstrap)
    return Measure(name, value, low, high, n, recipe, "lower", unit, dealt)


def _dealt(first: Tensor, second: Tensor, resampled: Resampled, bootstrap: Bootstrap) -> tuple[float, float]:
    """The 95 % range of the distance where the clips of both sets are dealt out to two sets of these sizes at random."""
    rows, generator = torch.cat((first, second)), generator_for(bootstrap.seed, _DEALS)
    dealt = torch.zeros(bootstrap.resamples, len(rows), dtype=rows.dtype)
    for row in dealt:
        row[torch.randperm(len(rows), generator=generator)[: len(first)]] = 1
    distances = resampled(rows, rows, dealt, 1 - dealt)
    return central_range(distances)
