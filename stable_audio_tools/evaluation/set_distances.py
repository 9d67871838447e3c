"""Distances between two sets of clips, one for each embedder, with their intervals and what sets of one source would give."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for

from .bootstrap import ANY, AT_LEAST_0, Span
from .comparison import Comparison
from .embedders.base import Embedder
from .frechet import extrapolated, frechet_of, gaussian
from .kernel_distance import gaussian_kernel, kernel_distance, polynomial_distance
from .measure import Measure
from .two_sets import SMALLEST, Resampled, between

FRACTIONS = 1 / torch.linspace(1, 4, 12, dtype=torch.float64)  # chosen: of the set, evenly spaced in 1 / N, where the line is read
_THINNING = 3  # a random stream beside those of the bootstrap and of dealing


def frechet(comparison: Comparison) -> list[Measure]:
    """`frechet_<embedder>` for each embedder."""
    return _each(comparison, "frechet", _frechet_resampled, {"distance": "Fréchet, arXiv:1812.08466"}, span=AT_LEAST_0)


def kernel(comparison: Comparison) -> list[Measure]:
    """`kernel_<embedder>` for each embedder."""
    recipe = {"distance": "squared MMD, unbiased, arXiv:1801.01401", "kernel": "(x.y/D + 1)^3, in units of the reference's RMS"}
    return _each(comparison, "kernel", _polynomial_resampled, recipe)


def kad(comparison: Comparison) -> list[Measure]:
    """`kad_<embedder>` for each embedder."""
    recipe = {"distance": "squared MMD, unbiased, arXiv:2502.15602, not scaled", "kernel": "Gaussian, median distance of the reference"}
    return _each(comparison, "kad", _gaussian_resampled, recipe)


def frechet_infinity(comparison: Comparison) -> list[Measure]:
    """`frechet_infinity_<embedder>` for each embedder: may come out below 0, as an estimate of 0 must."""
    return [_infinity(comparison, embedder, finite) for embedder, finite in zip(comparison.embedders, frechet(comparison), strict=True)]


def _infinity(comparison: Comparison, embedder: Embedder, finite: Measure) -> Measure:
    name = f"frechet_infinity_{embedder.name}"
    recipe = {**finite.recipe, "extrapolated": "in 1 / N, arXiv:2311.01616, both sets thinned out", "smallest_share": float(FRACTIONS[-1])}
    sets = _sets(comparison, embedder)
    if min(map(len, sets)) < SMALLEST / float(FRACTIONS[-1]):
        return Measure(name, math.nan, math.nan, math.nan, finite.n, recipe, "lower")
    value, error = extrapolated(*sets, FRACTIONS, generator_for(comparison.bootstrap.seed, _THINNING))
    below, above = (math.hypot(end - finite.value, 1.96 * error) for end in (finite.low, finite.high))
    return Measure(name, value, value - below, value + above, finite.n, recipe, "lower")


def _each(comparison: Comparison, metric: str, resampled: Resampled, recipe: dict[str, Any], *, span: Span = ANY) -> list[Measure]:
    return [_distance(comparison, embedder, metric, resampled, recipe, span) for embedder in comparison.embedders]


def _distance(comparison: Comparison, embedder: Embedder, metric: str, resampled: Resampled, recipe: dict[str, Any], span: Span) -> Measure:
    sizes = _sizes(comparison, embedder)
    full = {**comparison.recipe_of(embedder), **recipe, **sizes}
    if span == AT_LEAST_0 and min(sizes["generated"], sizes["reference"]) <= sizes["dimensions"]:  # cannot be below 0, so is biased
        full["note"] = "fewer clips than dimensions: compare with numbers of as many clips only"
    return between(f"{metric}_{embedder.name}", *_sets(comparison, embedder), resampled, comparison.bootstrap, full, span=span)


def _sets(comparison: Comparison, embedder: Embedder) -> tuple[Tensor, Tensor]:
    """The vectors of both parts, float64; where one has the rows of the other in another order, in one order."""
    first, second = (comparison.embedded(part, embedder).vectors.double() for part in ("generated", "reference"))
    if first.shape == second.shape and not torch.equal(first, second):
        orders = [_order(rows) for rows in (first, second)]
        if torch.equal(first[orders[0]], second[orders[1]]):
            return first[orders[0]], second[orders[1]]
    return first, second


def _order(rows: Tensor) -> Tensor:
    """(N,) places of the rows in an order that depends on their values alone."""
    return torch.unique(rows, dim=0, return_inverse=True)[1].argsort(stable=True)


def _sizes(comparison: Comparison, embedder: Embedder) -> dict[str, Any]:
    generated, reference = (comparison.embedded(part, embedder) for part in ("generated", "reference"))
    sizes: dict[str, Any] = {"generated": len(generated.places), "reference": len(reference.places)}
    sizes["dimensions"] = generated.vectors.shape[1]
    if left_out := generated.left_out + reference.left_out:
        sizes["left_out"] = left_out
    return sizes


def _frechet_resampled(first: Tensor, second: Tensor, counts: Tensor, other_counts: Tensor) -> Tensor:
    pairs = zip(counts, other_counts, strict=True)
    distances = [frechet_of(torch.cat(gaussian(first, mine)), torch.cat(gaussian(second, theirs))) for mine, theirs in pairs]
    return torch.tensor(distances, dtype=torch.float64)


def _polynomial_resampled(first: Tensor, second: Tensor, counts: Tensor, other_counts: Tensor) -> Tensor:
    return polynomial_distance(first, second, (counts, other_counts))


def _gaussian_resampled(first: Tensor, second: Tensor, counts: Tensor, other_counts: Tensor) -> Tensor:
    return kernel_distance(first, second, gaussian_kernel(second), (counts, other_counts))
