"""Draws with replacement: how often what is drawn, endless epochs, and the same draws after any interruption."""

from collections import Counter

import pytest
import torch

from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.resampled import BLOCK, Draws
from stable_audio_tools.data.types import Sample

RUNS, WEIGHTS = [range(0, 10), range(10, 10), range(10, 110), range(110, 111)], [1.0, 9.0, 2.0, 1.0]


class Keys:
    """Items that say which they are."""

    def __len__(self):
        return 111

    def visit(self, key):
        return Sample(torch.zeros(1, 1), {"item": key.item, "visit": key.visit})


def loader(steps=50, batch_size=4, **options):
    return AudioLoader(Keys(), batch_size, seed=3, draws=Draws(RUNS, WEIGHTS, steps), **options)


def served(loader, passes=1):
    return [[(m["item"], m["visit"]) for m in metadata] for _ in range(passes) for _, metadata in loader]


def test_runs_are_drawn_by_their_weight_and_items_evenly():
    items = Counter(item for batch in served(loader(1000)) for item, _ in batch)
    shares = [sum(items[item] for item in run) / 4000 for run in RUNS]
    assert shares == pytest.approx([0.25, 0, 0.5, 0.25], abs=0.03)
    assert max(items[item] for item in RUNS[0]) < 2 * min(items[item] for item in RUNS[0])


def test_an_epoch_has_its_steps_on_each_rank_and_no_visit_twice():
    assert len(loader()) == len(loader(rank=1, world_size=3)) == 50
    visits = [visit for batch in served(loader(), 3) for _, visit in batch]
    assert len(visits) == len(set(visits)) == 600


@pytest.mark.parametrize("batch_size, workers, world", [(4, 0, 1), (4, 2, 1), (2, 0, 2), (1, 0, 4)])
def test_the_draws_go_on_where_they_were(batch_size, workers, world):
    whole = [item for batch in served(loader(), 2) for item in batch]
    first = loader()
    iterator = iter(first)
    taken = [next(iterator) for _ in range(30)]
    state = first.state_dict()
    assert len(taken) == 30 and state["position"] == 120
    rest = []
    for rank in range(world):
        other = loader(batch_size=batch_size, num_workers=workers, rank=rank, world_size=world)
        other.load_state_dict(state)
        rest.append(served(other))
        other.close()
    together = [item for step in zip(*rest, strict=True) for batch in step for item in batch]
    assert together == whole[120:200]


def test_how_long_an_epoch_is_does_not_change_how_it_begins():
    draws = Draws(RUNS, WEIGHTS, 1)
    long = draws.order(3, 5, 2 * BLOCK + 100)
    for items in (1, 100, BLOCK, BLOCK + 1):
        assert torch.equal(draws.order(3, 5, items), long[:items])
    assert not torch.equal(draws.order(3, 6, 100)[:, 1], long[:100, 1])
    assert not torch.equal(draws.order(4, 5, 100)[:, 1], long[:100, 1])
    assert not torch.equal(long[:100, 1], long[BLOCK : BLOCK + 100, 1])
