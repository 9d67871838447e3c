"""Batches of similar lengths: every item once, little padding, the same on all ranks, and resumed exactly, also by other ranks."""

import pytest
import torch
from torch.utils.data import Dataset

from stable_audio_tools.data.buckets import LengthGrid, by_length
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.order import epoch_order
from stable_audio_tools.data.types import Part, Sample


class Clips(Dataset):
    """Clip i is i + 1 in all of its `lengths[i]` samples."""

    def __init__(self, lengths):
        self.lengths = torch.tensor(lengths)

    def __len__(self):
        return len(self.lengths)

    def visit(self, key):
        length = int(self.lengths[key.item])
        return Sample(torch.full((2, length), float(key.item + 1)), {"item": key.item, "visit": key.visit}, length)


def lengths(count, seed=0):
    return torch.randint(20, 471, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def loader(count=83, batch_size=4, **options):
    return AudioLoader(Clips(lengths(count)), batch_size, seed=3, grid=LengthGrid(8), **options)


def items(batches):
    return [[item["item"] for item in metadata] for _, metadata in batches]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_stays_and_steps_are_of_similar_length(shuffle):
    sizes = torch.tensor(lengths(400))
    order = epoch_order((Part(300, 0.5), Part(100, 2.0)), 0, 2, shuffle=shuffle)
    names = (0, 2) if shuffle else ()
    rows = by_length(order, sizes, 16, *names)
    assert sorted(rows.tolist()) == sorted(order.tolist())
    whole = len(rows) // 16 * 16
    steps = sizes[rows[:whole, 1]].view(-1, 16)
    padded, real = int(steps.amax(1).sum()) * 16, int(steps.sum())
    assert real / padded > 0.9 > sizes[order[:whole, 1]].sum() / (sizes[order[:whole, 1]].view(-1, 16).amax(1).sum() * 16)
    assert sorted(rows[whole:].tolist()) == sorted(order[whole:].tolist())  # what is left over is not chosen by its length
    assert steps[0].max() >= steps.max() / 1.03


def test_what_comes_together_and_when_depends_on_seed_and_epoch():
    sizes, order = torch.tensor(lengths(96)), epoch_order((Part(96),), 0, 0, shuffle=False)

    def steps(*names):
        return by_length(order, sizes, 8, *names)[:, 1].view(-1, 8).tolist()

    assert len({frozenset(map(frozenset, steps(*names))) for names in [(0, 0), (0, 1), (1, 0)]}) == 3
    assert steps(0, 1) == steps(0, 1)
    assert steps()[0] == sorted(range(96), key=lambda item: -sizes[item])[:8]


def test_fewer_items_than_a_step_are_sorted():
    sizes = torch.tensor([3, 9, 5])
    assert by_length(epoch_order((Part(3),), 0, 0, shuffle=False), sizes, 8, 1, 2)[:, 1].tolist() == [1, 2, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_as_long_as_their_longest_clip_and_say_what_is_real(workers):
    made = loader(num_workers=workers)
    seen, shapes = set(), set()
    for audio, metadata in made:
        longest = max(int(made.lengths[item["item"]]) for item in metadata)
        assert audio.shape == (4, 2, -(-longest // 8) * 8)
        shapes.add(audio.shape[-1])
        for row, item in zip(audio, metadata, strict=True):
            length = int(made.lengths[item["item"]])
            assert item["padding_mask"].tolist() == [True] * length + [False] * (audio.shape[-1] - length)
            assert row[:, :length].eq(item["item"] + 1).all() and not row[:, length:].any()
            seen.add(item["item"])
    made.close()
    assert len(seen) == 80 and len(shapes) > 10


def test_lengths_that_a_model_takes():
    grid = LengthGrid(2048, 5000)
    assert [grid.padded(length) for length in (1, 5000, 6144, 6145)] == [6144, 6144, 6144, 8192]
    assert grid.in_frames(1024) == LengthGrid(2, 5)
    assert LengthGrid().padded(7) == 7


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_have_as_many_batches_and_share_the_items(shuffle, drop_last):
    ranks = [loader(rank=rank, world_size=3, shuffle=shuffle, drop_last=drop_last) for rank in range(3)]
    served = [items(rank) for rank in ranks]
    assert {len(batches) for batches in served} == {len(rank) for rank in ranks} == {6 if shuffle and drop_last else 7}
    flat = [item for batches in served for batch in batches for item in batch]
    assert len(flat) == len(set(flat)) == (72 if shuffle and drop_last else 83)
    for step in list(zip(*served, strict=True))[:6]:  # all ranks work for about as long
        longest = [max(int(ranks[0].lengths[item]) for item in batch) for batch in step]
        assert max(longest) - min(longest) < 120  # of the 450 that there are


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_goes_on_where_another_was(workers):
    whole = loader()
    batches = items(whole) + items(whole)
    for stop in (1, 7, 20, 23):
        first, made = loader(num_workers=workers), []
        while len(made) < stop:
            for _, metadata in first:
                made.append([item["item"] for item in metadata])
                if len(made) == stop:
                    break
        state = first.state_dict()
        first.close()
        assert set(state) == {"seed", "epoch", "position", "step"} and all(type(value) is int for value in state.values())
        later = loader(num_workers=0)
        later.load_state_dict(state)
        assert made + items(later) == batches[: (stop // 20 + 1) * 20]


@pytest.mark.parametrize("ranks, batch_size", [(2, 4), (3, 4), (1, 7)])
def test_other_ranks_or_batch_sizes_go_on_with_what_is_left_of_the_epoch(ranks, batch_size):
    first, made = loader(80), []
    for _, metadata in first:
        made += [item["item"] for item in metadata]
        if len(made) == 24:
            break
    for rank in range(ranks):
        later = loader(80, batch_size, rank=rank, world_size=ranks, drop_last=False)
        later.load_state_dict(first.state_dict())
        made += [item for batch in items(later) for item in batch]
    assert len(made) - 80 < ranks and set(made) == set(range(80))


def test_without_lengths_items_of_a_batch_have_one_shape():
    class Uneven(Clips):
        def __init__(self):
            super().__init__([4, 5])
            self.sizes, self.lengths = self.lengths, None

        def __len__(self):
            return 2

        def visit(self, key):
            return Sample(torch.zeros(1, int(self.sizes[key.item])), {})

    with pytest.raises(ValueError, match=r"shapes \(1, 5\) and \(1, 4\)|shapes \(1, 4\) and \(1, 5\)"):
        next(iter(AudioLoader(Uneven(), 2)))
