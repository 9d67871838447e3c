"""Every good file once an epoch, whatever the workers and ranks, also when resumed with another number of either; nothing leaks."""

import gc
import multiprocessing
import os
import random
from collections import Counter

import audio_files
import pytest
import torch
from torch.utils.data import Dataset

from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.types import Sample

RATE = 8000


class Numbers(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def visit(self, key):
        return Sample(torch.full((1, 2), float(key.item)), {"key": tuple(key)})


def items(batch):
    return [item["key"][2] for item in batch[1]]


def side_by_side(loaders, steps=None):
    """Items of so many steps, or of the rest of the epoch, of all ranks; and the state after them, which is one of all ranks."""
    passes, served = [iter(loader) for loader in loaders], []
    while steps is None or len(served) < steps:
        made = [next(batches, None) for batches in passes]
        if made[0] is None:
            assert made == [None] * len(made)
            break
        served.append([items(batch) for batch in made])
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    return served, states[0]


def ranks_of(dataset, batch_size, world_size, **options):
    return [AudioLoader(dataset, batch_size, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def resumed(draw, workers, drop_last):
    """Serve an epoch in up to three runs, each with other workers, ranks and batches.

    Returns its items, its length, and how many may be left out.
    """
    length = draw.randint(12, 60)
    dataset, served, state, left_out = Numbers(length), [], {"seed": 7, "epoch": 0, "position": 0}, 0
    for run in range(3):
        left = length - state["position"]
        world_size, batch_size = draw.randint(1, min(3, left)), draw.randint(2, 4)
        left_out = batch_size * world_size - 1 if drop_last else 0
        if left <= left_out:
            break
        loaders = ranks_of(dataset, batch_size, world_size, drop_last=drop_last, num_workers=draw.choice(workers))
        for loader in loaders:
            loader.load_state_dict(state)
        steps, state = side_by_side(loaders, draw.randint(1, 2) if run < 2 else None)
        served += [item for step in steps for batch in step for item in batch]
        for loader in loaders:
            loader.close()
        if state["epoch"]:
            break
    return served, length, left_out


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("case", range(40))
def test_every_item_once_an_epoch_whatever_the_ranks_before_and_after_an_interruption(case, drop_last):
    served, length, left_out = resumed(random.Random(case), [0], drop_last)
    assert len(set(served)) == len(served)
    assert set(served) <= set(range(length))
    assert length - len(served) <= left_out


@pytest.mark.slow
@pytest.mark.parametrize("case", range(4))
def test_every_item_once_an_epoch_whatever_the_workers_before_and_after_an_interruption(case):
    served, length, _ = resumed(random.Random(case), [1, 2, 5], drop_last=False)
    assert sorted(served) == list(range(length))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", range(200))
def test_every_item_once_an_epoch_on_the_whole_grid(case):
    served, length, left_out = resumed(random.Random(1000 + case), [0, 1, 2, 5], case % 2 == 0)
    assert len(set(served)) == len(served) >= length - left_out


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_validation_holds_all_items_once_on_any_number_of_ranks(batch_size, world_size):
    for length in range(world_size, 32):
        steps, _ = side_by_side(ranks_of(Numbers(length), batch_size, world_size, shuffle=False))
        assert sorted(item for step in steps for batch in step for item in batch) == list(range(length))
        assert all(1 <= len(batch) <= batch_size for step in steps for batch in step)


def test_batches_of_one_repeat_items_where_ranks_would_have_none():
    steps, _ = side_by_side(ranks_of(Numbers(7), 1, 3, shuffle=False))
    assert steps == [[[0], [1], [2]], [[3], [4], [5]], [[6], [0], [1]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven good files, a link to all of them, and some that are none."""
    root = tmp_path_factory.mktemp("sounds")
    for number in range(11):
        audio_files.write(root / f"in {number % 3}" / f"{number}.wav", audio_files.signal(0.2, RATE, 1, number), RATE)
    (root / "in 0" / "again").symlink_to(root)
    (root / "empty.wav").write_bytes(b"")
    (root / "cut.wav").write_bytes((root / "in 0" / "0.wav").read_bytes()[:900])
    return root


def folder_loader(folder, workers, ranks=(0, 1), **options):
    config = {"dataset_type": "audio_dir", "drop_last": False, "datasets": [{"id": "a", "path": str(folder)}]}
    rank, world_size = ranks
    return create_dataloader_from_config(config, 2, 800, RATE, 1, workers, seed=3, rank=rank, world_size=world_size, **options)


def clips(batches):
    return [
        (item["path"], item["timestamps"], row.tobytes())
        for audio, metadata in batches
        for row, item in zip(audio.numpy(), metadata, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_files_of_a_folder_come_once_an_epoch_on_any_number_of_ranks_and_are_the_same_clips(folder, workers):
    reference = clips(folder_loader(folder, 0))
    assert len({path for path, *_ in reference}) == len(reference) == 11
    for world_size in (1, 2, 3):
        loaders = [folder_loader(folder, workers, (rank, world_size)) for rank in range(world_size)]
        assert sorted(clip for loader in loaders for clip in clips(loader)) == sorted(reference)
        for loader in loaders:
            loader.close()


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_files_of_a_folder_are_the_same_clips_however_workers_start(folder, start_method):
    loader = folder_loader(folder, 2)
    loader.close()
    other = AudioLoader(loader.dataset, 2, seed=3, drop_last=False, num_workers=2, start_method=start_method)
    assert clips(other) == clips(folder_loader(folder, 0))
    other.close()


def test_the_name_of_an_item_is_its_file(folder):
    dataset = folder_loader(folder, 0).dataset
    names = [dataset.name(index) for index in range(len(dataset))]
    assert Counter(os.path.basename(name) for name in names) == Counter(f"{number}.wav" for number in range(11))
    assert all(dataset[index].metadata["path"] == name for index, name in enumerate(names))


def test_a_flac_that_claims_ten_hours_is_found_before_training(folder, tmp_path):
    """Its header holds the number of samples in the last 36 of 64 bits."""
    liar = bytearray(audio_files.write(tmp_path / "liar.flac", audio_files.signal(0.5, RATE, 1), RATE).read_bytes())
    facts = int.from_bytes(liar[18:26], "big")
    liar[18:26] = (facts >> 36 << 36 | 36_000 * RATE).to_bytes(8, "big")
    (tmp_path / "liar.flac").write_bytes(liar)
    audio_files.write(tmp_path / "good.wav", audio_files.signal(0.5, RATE, 1), RATE)
    (scan,) = folder_loader(tmp_path, 0).dataset.scans
    assert [tuple(bad) for bad in scan.bad] == [(str(tmp_path / "liar.flac"), "the audio cannot be decoded: the file is cut or damaged")]


def resident_kib(processes):
    """Of this process and others."""
    total = 0
    for process in ("self", *processes):
        with open(f"/proc/{process}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Rss:"))
    return total


def open_files(processes):
    return sum(len(os.listdir(f"/proc/{process}/fd")) for process in ("self", *processes))


@pytest.mark.exhaustive
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory of processes is read as Linux gives it")
@pytest.mark.parametrize("workers", [0, 2])
def test_two_thousand_steps_leave_memory_and_open_files_as_they_were(folder, workers):
    loader, counts, memory, step = folder_loader(folder, workers), [], [], 0
    while step < 2000:
        for _ in loader:
            step += 1
            if step % 100 == 0:
                gc.collect()
                children = [child.pid for child in multiprocessing.active_children()]
                memory.append(resident_kib(children))
                counts.append(open_files(children))
    loader.close()
    settled = torch.tensor(memory[4:], dtype=torch.float64)
    hundreds = torch.arange(len(settled), dtype=torch.float64)
    slope = ((hundreds - hundreds.mean()) * (settled - settled.mean())).sum() / ((hundreds - hundreds.mean()) ** 2).sum()
    print(f"workers {workers}: {float(slope):.1f} KiB / 100 steps, open files {counts}")
    assert slope < 1024
    assert max(counts[4:]) - min(counts[4:]) <= 4 * workers  # batches on their way
