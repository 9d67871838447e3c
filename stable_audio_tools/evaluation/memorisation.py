"""Were training clips learnt by heart? Whether parts of them come back sample for sample, and how near clips come to sounding alike.

Reference clips that were not trained on show what is found in clips that cannot be copies: what is as simple as a pure tone is alike
to the last sample, copied or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .bootstrap import COSINE, SHARE
from .comparison import Comparison
from .copies import COPY, SAMPLE_RATE, Match, find_copies
from .embedders.base import Embedder
from .measure import Measure
from .nearest import Neighbour, nearest_training
from .statistics import Share
from .two_sets import between
from .windows import WINDOW_S

LISTED = 20  # closest pairs in the report

Found = TypeVar("Found", Match, Neighbour)


def memorisation(comparison: Comparison) -> list[Measure]:
    """`copies`, the share of clips a second of which is in a training clip, and the closest pairs; for each embedder `nearest`.

    `nearest_<embedder>` is the mean similarity of clips to the training clip that is nearest to any of their windows.

    Where reference clips are there that are not among the training clips, by name, both are measured of them too
    (`copies_reference`, `nearest_reference_<embedder>`), and `nearer_than_reference_<embedder>` is the chance that a clip is nearer to
    training than one of them is: 0.5 where the model copies no more than chance does. Silent clips have no part in any.
    """
    assert comparison.training is not None
    sets = [comparison.generated] if comparison.reference is None else [comparison.generated, comparison.reference]
    (made, *others), names = find_copies(sets, comparison.training)
    recipe = {**comparison.recipe, "training": len(comparison.training), "window_s": WINDOW_S, "loudness": "each window at one level"}
    copying = {**recipe, "copy": f"waveforms at {SAMPLE_RATE} Hz correlate at {COPY} or more over a second"}
    measures = [_copies("copies", made, copying)]
    if unseen := _unseen(others, names):
        measures.append(_copies("copies_reference", unseen, copying))
    for embedder in comparison.embedders:
        measures += _nearest(comparison, embedder, nearest_training(embedder, sets, comparison.training), names, recipe)
    return measures


def _unseen(others: list[list[Found]], names: set[str]) -> list[Found]:
    """Of the reference, what was found for clips that are no training clips."""
    return [found for rows in others for found in rows if not found.name or found.name not in names]


def _copies(name: str, matches: list[Match], recipe: Mapping[str, Any]) -> Measure:
    closest = sorted(matches, key=lambda match: match.correlation, reverse=True)[:LISTED]
    share = Share(sum(match.is_copy for match in matches), len(matches))
    return replace(Measure.of_share(name, share, recipe, "lower"), details=[match.to_dict() for match in closest])


def _nearest(
    comparison: Comparison, embedder: Embedder, found: list[list[Neighbour]], names: set[str], recipe: Mapping[str, Any]
) -> list[Measure]:
    recipe = {**recipe, **embedder.recipe, "similarity": "cosine, standardised over training windows"}
    made, unseen = found[0], _unseen(found[1:], names)
    measures = [_similarity(comparison, f"nearest_{embedder.name}", made, recipe)]
    if unseen:
        measures.append(_similarity(comparison, f"nearest_reference_{embedder.name}", unseen, recipe))
        name = f"nearer_than_reference_{embedder.name}"
        measures.append(between(name, _values(made), _values(unseen), chance_of_more, comparison.bootstrap, recipe, span=SHARE))
    return measures


def _similarity(comparison: Comparison, name: str, found: list[Neighbour], recipe: Mapping[str, Any]) -> Measure:
    closest = sorted(found, key=lambda neighbour: neighbour.similarity, reverse=True)[:LISTED]
    return replace(
        comparison.bootstrap.mean(name, _values(found), recipe, span=COSINE), details=[neighbour.to_dict() for neighbour in closest]
    )


def _values(found: list[Neighbour]) -> Tensor:
    return torch.tensor([neighbour.similarity for neighbour in found], dtype=torch.float64)


def chance_of_more(first: Tensor, second: Tensor, counts: Tensor, other_counts: Tensor) -> Tensor:
    """How often a value of (N,) is above one of (M,), equal ones half, each taken as often as (R, N) and (R, M) say: (R,)."""
    above = (first[:, None] > second).double() + 0.5 * (first[:, None] == second).double()
    return ((counts @ above) * other_counts).sum(1) / (counts.sum(1) * other_counts.sum(1))
