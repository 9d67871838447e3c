"""Which noise a training example gets: by optimal transport within a batch, each the one that the shortest paths lead from.

Tong et al. 2023, arXiv:2302.00482, and Pooladian et al. 2023, arXiv:2304.14772.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def nearest_noise(latents: Tensor, noise: Tensor) -> Tensor:
    """The same noise in another order: the one with the least sum of squared distances between items and their noise.

    The order is exact; upstream's successor takes the rows of 20 Sinkhorn iterations one after the other. It depends on numbers, so
    a GPU is waited for, as long as it takes to bring a (B, B) matrix to the CPU.

    Args:
        latents: (B, C, T).
        noise: (B, C, T).
    """
    # |x - n|^2 = |x|^2 + |n|^2 - 2 x n, and whatever the order, the first two sums are the same.
    return noise[best_order(-latents.flatten(1).float() @ noise.flatten(1).float().T)]


@torch.library.custom_op("stable_audio_tools::best_order", mutates_args=())
def best_order(cost: Tensor) -> Tensor:
    """(B,) int64: the column for each row of `cost` (B, B), all different, such that the sum of costs is least.

    An operator of its own, so that a step can also be run on fake tensors or compiled.
    """
    return torch.from_numpy(shortest_augmentation(cost.detach().double().cpu().numpy())).to(cost.device)


@best_order.register_fake
def _(cost: Tensor) -> Tensor:
    return cost.new_empty(len(cost), dtype=torch.int64)


def shortest_augmentation(cost: np.ndarray) -> np.ndarray:
    """The assignment of least cost by shortest augmenting paths, O(B^3). Jonker and Volgenant 1987, doi:10.1007/BF02278710.

    Args:
        cost: (B, B) float64.

    Returns:
        (B,) int64, the column of each row; its own number where a cost is not finite, and the loss will not be either.
    """
    size = len(cost)
    if not np.isfinite(cost).all():
        return np.arange(size)
    row_price, column_price = np.zeros(size), np.zeros(size)
    row_of, column_of = np.full(size, -1), np.full(size, -1)
    for start in range(size):
        reduced = cost - row_price[:, None] - column_price
        column, distance, came_from, done = _shortest_path(reduced, start, row_of)
        saved = distance[column] - distance[done]
        row_price[start] += distance[column]
        row_price[row_of[done]] += saved
        column_price[done] -= saved
        row = -1
        while row != start:  # hand each column of the path over to the row that it was reached from
            row = came_from[column]
            row_of[column] = row
            column, column_of[row] = column_of[row], column
    return column_of


def _shortest_path(reduced: np.ndarray, row: int, row_of: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Dijkstra from a row without a column to the nearest column without a row, over costs (B, B) that are not negative.

    Returns:
        that column; the distance of each column (B,), the row it was reached from (B,), and whether the path may pass it (B,).
    """
    size, reached = len(reduced), 0.0
    distance, came_from, done = np.full(size, np.inf), np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
    while True:
        through = reached + reduced[row]
        nearer = ~done & (through < distance)
        distance[nearer], came_from[nearer] = through[nearer], row
        column = int(np.where(done, np.inf, distance).argmin())
        if row_of[column] < 0:
            return column, distance, came_from, done
        done[column], reached, row = True, distance[column], row_of[column]
