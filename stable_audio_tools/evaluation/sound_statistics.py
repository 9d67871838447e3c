"""Levels, spectrum and stereo image of a set of clips, and how far they are distributed from those of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .clip_sets import Clips
from .clip_statistics import STATISTICS, clip_statistics
from .comparison import Comparison
from .measure import Measure
from .statistics import Share
from .two_sets import between


def sound_statistics(comparison: Comparison) -> list[Measure]:
    """The mean of each statistic over the clips; with a reference, `<name>_distance` too; and the share of `broken` clips.

    Clips that are empty or not finite count as broken and nowhere else.
    """
    made, broken = _values(comparison.generated)
    real = None if comparison.reference is None else _values(comparison.reference)[0]
    measures = [Measure.of_share("broken", broken, {**comparison.recipe, "what": "clips that are empty or not finite"}, "lower")]
    for name, statistic in STATISTICS.items():
        recipe: dict[str, Any] = {**comparison.recipe, "statistic": statistic.what}
        measures.append(comparison.bootstrap.mean(name, made[name], recipe, unit=statistic.unit, span=statistic.span))
        if real is not None:
            first, second = (values[~values.isnan()] for values in (made[name], real[name]))
            recipe = {**recipe, "distance": "Wasserstein-1", "generated": len(first), "reference": len(second)}
            measures.append(between(f"{name}_distance", first, second, wasserstein, comparison.bootstrap, recipe, unit=statistic.unit))
    return measures


def _values(clips: Clips) -> tuple[dict[str, Tensor], Share]:
    """(N,) float64 of each statistic, of the clips that can be measured; and how many cannot."""
    rows, total = [], 0
    for clip in clips:
        total += 1
        if clip.is_whole:
            rows.append(clip_statistics(clip.audio, clip.sample_rate))
    values = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in STATISTICS}
    return values, Share(total - len(rows), total)


def wasserstein(first: Tensor, second: Tensor, counts: Tensor, other_counts: Tensor) -> Tensor:
    """How far values (N,) and (M,), each taken as often as (R, N) and (R, M) say, have to be moved to coincide, on average: (R,)."""
    places, order = torch.cat((first, second)).sort()
    nothing, other_nothing = torch.zeros_like(other_counts), torch.zeros_like(counts)
    shares = [
        (torch.cat(part, 1)[:, order] / part[own].sum(1, keepdim=True)).cumsum(1)
        for own, part in enumerate(((counts, nothing), (other_nothing, other_counts)))
    ]
    return ((shares[0] - shares[1])[:, :-1].abs() * places.diff()).sum(1)
