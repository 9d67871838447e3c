"""In which order items are served: a function of (seed, epoch), shared out to ranks, resumable at any batch.

The batches of all ranks side by side are consecutive stretches of one order. How many ranks and workers there are, and how
large a batch is, therefore changes neither which items an epoch holds nor where it goes on after an interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stable_audio_tools.data.draws import permutation
from stable_audio_tools.data.types import Part


def epoch_length(parts: Sequence[Part]) -> int:
    """Items in an epoch."""
    return sum(_share(part) for part in parts)


def epoch_order(parts: Sequence[Part], seed: int, epoch: int, *, shuffle: bool) -> Tensor:
    """(N, 2) int64: the visit and the index of every item of an epoch, in the order of serving.

    Each part is an endless row of rounds, a round being all its items once; an epoch takes the next `weight` rounds of it.
    So with weight 1 every item comes once an epoch, with 0.5 once in two epochs, and the number of the round is
    the item's number of earlier visits.
    """
    rows, offset = [], 0
    for number, part in enumerate(parts):
        share = _share(part)
        place = torch.arange(epoch * share, (epoch + 1) * share)
        visits = place // part.length
        orders = [_round(part.length, seed, number, int(visit), shuffle) for visit in visits.unique().tolist()]
        indices = torch.cat(orders)[place - visits[0] * part.length]
        rows.append(torch.stack((visits, indices + offset), 1))
        offset += part.length
    order = torch.cat(rows)
    return order[permutation(len(order), seed, "epoch", epoch)] if shuffle else order


def batches_in(length: int, batch_size: int, world_size: int, *, drop_last: bool) -> int:
    """Batches of each rank in an epoch of `length` items."""
    step = batch_size * world_size
    return length // step if drop_last else -(-length // step)


def taken_by(batches: int, left: int, batch_size: int, world_size: int) -> int:
    """Items that the first `batches` batches of all ranks take of the `left` ones, where those batches are not the last.

    The batch before the last leaves an item for every rank, so that none has to be repeated; one of a single item cannot.
    """
    taken = batches * batch_size * world_size
    return min(taken, left - world_size) if batch_size > 1 else taken


def rank_batches(order: Tensor, position: int, batch_size: int, rank: int, world_size: int, *, drop_last: bool) -> Iterator[Tensor]:
    """The batches (b, 2) of one rank, from the item at `position` on; the same number of them on every rank.

    The last batches hold what is left, shared as evenly as it goes. Where that is fewer items than ranks, which takes batches
    of one item or fewer items than ranks in all, ranks without one repeat an item from the start of the order, since every
    rank must take part in every step.
    """
    left = len(order) - position
    count = batches_in(left, batch_size, world_size, drop_last=drop_last)
    begin = 0
    for number in range(1, count + 1):
        end = taken_by(number, left, batch_size, world_size) if number < count else min(number * batch_size * world_size, left)
        rows = order[position + begin : position + end]
        begin = end
        if len(rows) < world_size:
            repeats = order.repeat(-(-world_size // len(order)), 1)
            rows = torch.cat((rows, repeats[: world_size - len(rows)]))
        yield rows[rank * len(rows) // world_size : (rank + 1) * len(rows) // world_size]


def _share(part: Part) -> int:
    """Items that a part gives to an epoch; a part with items gives at least one."""
    return max(1, round(part.length * part.weight)) if part.length else 0


def _round(length: int, seed: int, part: int, visit: int, shuffle: bool) -> Tensor:
    return permutation(length, seed, "part", part, visit) if shuffle else torch.arange(length)
