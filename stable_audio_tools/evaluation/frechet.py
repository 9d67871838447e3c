"""The Fréchet distance between two sets of vectors, each taken as a Gaussian. arXiv:1706.08500 (images), arXiv:1812.08466 (audio).

In float64 and without the root of a product of covariances, which is not symmetric and fails where sets are small: with covariances
S = A^T A and R = B^T B, the trace of (S R)^(1/2) is the sum of the singular values of A B^T. This holds for any number of vectors,
also for fewer than dimensions, where covariances have no full rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS = 5  # chosen: of vectors for each point that the line goes through


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m - m'|^2 + tr(S + R - 2 (S R)^(1/2)) of two (N, D); 0 for equal ones.

    Raises:
        ValueError: fewer than two vectors, or another number of dimensions.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"sets of shapes {tuple(first.shape)} and {tuple(second.shape)}; expected two rows or more, and as many columns")
    return frechet_of(*(torch.cat(gaussian(rows.double())) for rows in (first, second)))


def gaussian(rows: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean (1, D) and a root (min(N, D), D) of the covariance of (N, D) rows, each taken `counts` (N,) times; float64."""
    weights = rows.new_ones(len(rows)) if counts is None else counts
    rows, weights = rows[weights > 0], weights[weights > 0]
    mean = (weights @ rows / weights.sum())[None]
    root = (weights / (weights.sum() - 1)).sqrt()[:, None] * (rows - mean)
    return mean, torch.linalg.qr(root, mode="r").R if len(rows) > rows.shape[1] else root


def frechet_of(first: Tensor, second: Tensor) -> float:
    """Of two Gaussians, each its mean above a root of its covariance."""
    (mean, root), (other_mean, other_root) = ((rows[:1], rows[1:]) for rows in (first, second))
    overlap = torch.linalg.svdvals(root @ other_root.T).sum()
    distance = (mean - other_mean).square().sum() + root.square().sum() + other_root.square().sum() - 2 * overlap
    return max(0.0, float(distance))  # rounding may take it below


def extrapolated(first: Tensor, second: Tensor, fractions: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The distance of endlessly many vectors, and the standard error of the line it is read off.

    The bias of the distance falls with the number of vectors as 1 / N (arXiv:1911.07023, section 4; for audio arXiv:2311.01616).
    Here both sets are thinned out to the same fractions, so that the bias of both is taken out; equal sets in equal ways.
    """
    distances = [_thinned_distance(first, second, fraction, generator) for fraction in fractions.tolist() for _ in range(DRAWS)]
    return _line_at_zero(1 / fractions.double().repeat_interleave(DRAWS), torch.tensor(distances, dtype=torch.float64))


def _thinned_distance(first: Tensor, second: Tensor, fraction: float, generator: torch.Generator) -> float:
    return frechet_of(*(torch.cat(gaussian(rows)) for rows in _thinned(first, second, fraction, generator)))


def _thinned(first: Tensor, second: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(first), generator=generator)
    other = order if len(first) == len(second) else torch.randperm(len(second), generator=generator)
    return first[order[: round(fraction * len(first))]], second[other[: round(fraction * len(second))]]


def _line_at_zero(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Where the least-squares line through points meets x = 0, and the standard error of that."""
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    value = y.mean() - slope * x.mean()
    rest = (y - value - slope * x).square().sum() / (len(x) - 2)
    return float(value), float((rest * (1 / len(x) + x.mean().square() / spread)).sqrt())
