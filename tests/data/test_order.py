"""The order of serving: every item as often as its weight says, the same for any number of ranks, resumable anywhere."""

from collections import Counter

import pytest
import torch

from stable_audio_tools.data.order import batches_in, epoch_length, epoch_order, rank_batches
from stable_audio_tools.data.types import Part


def rows(order):
    return [tuple(row) for row in order.tolist()]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_item_once_an_epoch(shuffle):
    parts = (Part(7), Part(4))
    for epoch in range(3):
        order = rows(epoch_order(parts, 0, epoch, shuffle=shuffle))
        assert sorted(item for _, item in order) == list(range(11))
        assert {visit for visit, _ in order} == {epoch}


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): rows(epoch_order((Part(50),), seed, epoch, shuffle=True)) for seed in (0, 1) for epoch in (0, 1)}
    items = {key: tuple(item for _, item in order) for key, order in orders.items()}
    assert len(set(items.values())) == 4
    assert orders[1, 1] == rows(epoch_order((Part(50),), 1, 1, shuffle=True))
    assert rows(epoch_order((Part(3),), 5, 0, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]


def test_weights_give_every_visit_its_number():
    parts = (Part(6, 0.5), Part(3, 2.0), Part(4, 0.01))
    assert epoch_length(parts) == 3 + 6 + 1
    seen = Counter(row for epoch in range(12) for row in rows(epoch_order(parts, 0, epoch, shuffle=True)))
    assert set(seen.values()) == {1}  # no visit of an item comes twice, and none is left out:
    visits = Counter(item for _, item in seen)
    assert [visits[item] for item in range(13)] == [6] * 6 + [24] * 3 + [3] * 4


SHARES = [(23, 4, 1), (23, 4, 2), (24, 4, 3), (25, 4, 3), (5, 4, 2), (3, 1, 4), (17, 2, 4)]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("length, batch_size, world_size", SHARES)
def test_ranks_side_by_side_are_the_order(length, batch_size, world_size, drop_last):
    order = epoch_order((Part(length),), 0, 0, shuffle=True)
    ranks = [list(rank_batches(order, 0, batch_size, rank, world_size, drop_last=drop_last)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {batches_in(length, batch_size, world_size, drop_last=drop_last)}
    served = [row for step in zip(*ranks, strict=True) for batch in step for row in rows(batch)]
    step = batch_size * world_size
    whole = length // step * step if drop_last else length
    assert served[:whole] == rows(order)[:whole]
    assert len(served) - whole < world_size  # ranks without an item repeat one
    assert set(served[whole:]) <= set(rows(order))
    assert all(len(batch) for batches in ranks for batch in batches)


def test_another_number_of_ranks_goes_on_with_what_is_left():
    order = epoch_order((Part(32),), 0, 0, shuffle=True)
    first = list(rank_batches(order, 0, 4, 0, 1, drop_last=False))[:2]
    later = [batch for rank in (0, 1) for batch in rank_batches(order, 8, 4, rank, 2, drop_last=False)]
    assert torch.cat(first + later)[:, 1].sort().values.tolist() == list(range(32))
