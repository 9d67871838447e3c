"""Were training clips learnt by heart? Each clip's nearest training clip, and whether a part of it is a copy of a part of that.

A window of the clip is compared with all windows of the training clips in an embedder's space; the nearest is then laid over the
training clip sample by sample, which tells a copy from what only sounds alike. Reference clips that were not trained on show how
near clips are that cannot be copies: what is as simple as a pure tone is alike to the last sample, copied or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .comparison import Comparison
from .embedders.base import Embedder
from .measure import Measure
from .nearest import COPY, Match, nearest_training
from .statistics import Share
from .two_sets import between
from .windows import WINDOW_S

LISTED = 20  # closest pairs in the report


def memorisation(comparison: Comparison) -> list[Measure]:
    """For each embedder: `copies`, the share of clips that copy, with the closest pairs; `nearest`, the mean similarity to training.

    Where reference clips are there that are not among the training clips, by name, they are measured in the same way
    (`copies_reference`, `nearest_reference`), and `nearer_than_reference` is the chance that a clip is nearer to training than one
    of them is: 0.5 where the model copies no more than chance does. Silent clips have no part in any.
    """
    return [measure for embedder in comparison.embedders for measure in _of(comparison, embedder)]


def _of(comparison: Comparison, embedder: Embedder) -> list[Measure]:
    assert comparison.training is not None
    sets = [comparison.generated] if comparison.reference is None else [comparison.generated, comparison.reference]
    found = nearest_training(embedder, sets, comparison.training)
    made = found.matches[0]
    unseen = [match for rows in found.matches[1:] for match in rows if not match.name or match.name not in found.training]
    recipe = {
        **comparison.recipe,
        **embedder.recipe,
        "loudness": "each window at one level",
        "training": len(comparison.training),
        "window_s": WINDOW_S,
        "copy": f"waveforms correlate at {COPY} or more over a window",
    }
    measures = _measures(comparison, embedder.name, made, recipe)
    if unseen:
        measures += _measures(comparison, f"reference_{embedder.name}", unseen, recipe)
        name, (first, second) = f"nearer_than_reference_{embedder.name}", (_similarities(made), _similarities(unseen))
        measures.append(between(name, first, second, chance_of_more, comparison.bootstrap, recipe))
    return measures


def _measures(comparison: Comparison, name: str, matches: list[Match], recipe: Mapping[str, Any]) -> list[Measure]:
    copies = Share(sum(match.is_copy for match in matches), len(matches))
    closest = sorted(matches, key=lambda match: (match.is_copy, match.similarity), reverse=True)[:LISTED]
    share = Measure.of_share(f"copies_{name}", copies, recipe, "lower")
    nearest = comparison.bootstrap.mean(f"nearest_{name}", _similarities(matches), {**recipe, "similarity": "cosine, standardised"})
    return [replace(share, details=[match.to_dict() for match in closest]), nearest]


def _similarities(matches: list[Match]) -> Tensor:
    return torch.tensor([match.similarity for match in matches], dtype=torch.float64)


def chance_of_more(first: Tensor, second: Tensor, counts: Tensor, other_counts: Tensor) -> Tensor:
    """How often a value of (N,) is above one of (M,), equal ones half, each taken as often as (R, N) and (R, M) say: (R,)."""
    above = (first[:, None] > second).double() + 0.5 * (first[:, None] == second).double()
    return ((counts @ above) * other_counts).sum(1) / (counts.sum(1) * other_counts.sum(1))
