"""How people would rate the clips, by embedders whose dimensions are ratings."""

from __future__ import annotations

from .comparison import Comparison
from .embedders.base import RatingEmbedder
from .measure import Measure


def ratings(comparison: Comparison) -> list[Measure]:
    """`<embedder>_<axis>` for each axis of each rating embedder: the mean over the clips."""
    return [measure for embedder in comparison.rating_embedders for measure in _of(comparison, embedder)]


def _of(comparison: Comparison, embedder: RatingEmbedder) -> list[Measure]:
    heard = comparison.embedded("generated", embedder)
    recipe = comparison.recipe_of(embedder) | ({"left_out": heard.left_out} if heard.left_out else {})
    columns = heard.vectors.expand(-1, len(embedder.axes)).unbind(1)
    return [
        comparison.bootstrap.mean(f"{embedder.name}_{axis}", column, recipe, "higher")
        for axis, column in zip(embedder.axes, columns, strict=True)
    ]
