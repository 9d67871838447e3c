"""Batches that workers write into shared memory are those that are stacked in this process."""

import pytest
import torch
from torch.utils.data import Dataset

from stable_audio_tools.data.buckets import LengthGrid
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.shared_memory import can_share, stacked_in_shared_memory
from stable_audio_tools.data.types import Sample

SHAPES = {"stereo": (2,), "mono": (1,), "pictures": (3, 5), "plain": ()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_written_is_what_was_given(kind, dtype):
    sounds = [torch.randn(*SHAPES[kind], size, generator=torch.Generator().manual_seed(size)).mul(99).to(dtype) for size in (7, 40, 33)]
    made = stacked_in_shared_memory(sounds, 40)
    assert made.is_shared() and made.dtype == dtype and made.shape == (3, *SHAPES[kind], 40)
    for row, sound in zip(made, sounds, strict=True):
        assert torch.equal(row[..., : sound.shape[-1]], sound) and not row[..., sound.shape[-1] :].any()
    across = torch.randn(64, 2).T
    assert torch.equal(stacked_in_shared_memory([across, -across], 64), torch.stack((across, -across)))


class Clips(Dataset):
    def __init__(self, lengths):
        self.lengths = torch.tensor(lengths)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return Sample(torch.full((2, int(self.lengths[index])), index + 1.0), {"shares": can_share()})


def test_workers_share_and_the_batches_are_the_same():
    loaders = [AudioLoader(Clips([9, 30, 12, 31]), 2, num_workers=workers, grid=LengthGrid(8)) for workers in (0, 1)]
    here, there = (list(loader) for loader in loaders)
    assert [item["shares"] for _, metadata in there for item in metadata] == [True] * 4
    assert not any(item["shares"] for _, metadata in here for item in metadata)
    for (a, _), (b, _) in zip(here, there, strict=True):
        assert torch.equal(a, b) and b.is_shared()
    loaders[1].close()


def test_a_batch_outlives_the_worker_that_made_it():
    loader = AudioLoader(Clips([9, 30, 12, 31]), 2, num_workers=1, grid=LengthGrid(8))
    batches = [audio for audio, _ in loader]
    loader.close()
    assert all((audio != 0).any() and audio.isfinite().all() for audio in batches)
