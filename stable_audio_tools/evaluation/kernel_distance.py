"""The squared kernel distance (maximum mean discrepancy) between two sets, without bias: 0 on average for sets of one source.

Kernels are summed up block by block, so memory grows with the number of vectors and not with its square.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1024
MEDIAN_ROWS = 2048  # chosen: two million distances settle a median

Kernel = Callable[[Tensor, Tensor], Tensor]


def gaussian_kernel(reference: Tensor) -> Kernel:
    """exp(-|x - y|^2 / (2 s^2)), s the median distance between reference vectors. arXiv:2502.15602, section 4."""
    step = -(-len(reference) // MEDIAN_ROWS)
    distances = torch.pdist(reference[::step])
    width = distances.median() if len(distances) else torch.ones((), dtype=reference.dtype)
    if not width > 0:
        width = torch.ones_like(width)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (-torch.cdist(x, y).square() / (2 * width.square())).exp()

    return kernel


def kernel_distance(first: Tensor, second: Tensor, kernel: Kernel, counts: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The estimate from (N, D) and (M, D), or one for each of R resamples: (R,) float64.

    Equally many vectors are taken as pairs and the kernel within a pair is left out on both sides (Gretton et al. 2012, JMLR 13,
    equation 4): still without bias, and exactly 0 for a set and itself.

    Args:
        counts: (R, N) and (R, M), how often each vector is taken; None: each once, R = 1.
    """
    first, second = first.double(), second.double()
    taken = (first.new_ones(1, len(first)), second.new_ones(1, len(second))) if counts is None else counts
    within = mean_kernel(first, first, kernel, (taken[0], taken[0]), apart=True)
    within += mean_kernel(second, second, kernel, (taken[1], taken[1]), apart=True)
    return within - 2 * mean_kernel(first, second, kernel, taken, apart=len(first) == len(second))


def polynomial_distance(first: Tensor, second: Tensor, counts: tuple[Tensor, Tensor]) -> Tensor:
    """`kernel_distance` under (x . y / D + 1)^3, arXiv:1801.01401, section 4, in units of the root mean square of the second set: (R,).

    Without units the kernel of small vectors, such as some latents, sees means alone, and that of large ones little but their cubes.
    Each resample has the units of its own second set, for which the powers are summed apart.
    """
    rows = second.double().square().mean(1)
    unit = (counts[1] @ rows / counts[1].sum(1)).clamp_min(1e-30)
    powers = [kernel_distance(first, second, _power_of_product(k), counts) / unit**k for k in (1, 2, 3)]
    return 3 * powers[0] + 3 * powers[1] + powers[2]  # the constant term of the binomial cancels


def _power_of_product(exponent: int) -> Kernel:
    return lambda x, y: (x @ y.T / x.shape[1]) ** exponent


def mean_kernel(x: Tensor, y: Tensor, kernel: Kernel, counts: tuple[Tensor, Tensor], *, apart: bool) -> Tensor:
    """(R,) means of the kernel over pairs, each counted as often as both its members are; `apart`: without those of equal places."""
    left, right = counts
    total = left.new_zeros(len(left))
    for start in range(0, len(x), BLOCK):
        values = kernel(x[start : start + BLOCK], y)
        if apart:
            values.diagonal(start).zero_()
        total += ((left[:, start : start + BLOCK] @ values) * right).sum(1)
    pairs = left.sum(1) * right.sum(1)
    return total / (pairs - (left * right).sum(1) if apart else pairs)
