"""The loader: the same batches whatever the workers, exact resumption, evaluation passes, faults and dying workers."""

import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.types import Fault, Part, Sample, collate


class Numbers(Dataset):
    """Items say by which key they were asked for; some do something bad."""

    def __init__(self, length=23, bad=None):
        self.length, self.bad = length, bad

    def __len__(self):
        return self.length

    def visit(self, key):
        if self.bad == "error" and key.item == 3:
            raise ConfigError("nothing can be read", "dataset")
        faults = (Fault("a.wav", "cut"),) if self.bad == "fault" else ()
        return Sample(torch.full((1, 8), float(key.item)), {"key": tuple(key)}, 1 + key.item % 8, faults)


def keys(batches):
    return [tuple(item["key"] for item in metadata) for _, metadata in batches]


def passes(count, **options):
    loader = AudioLoader(Numbers(), 4, seed=5, **options)
    made = [keys(loader) for _ in range(count)]
    loader.close()
    return made


def test_batches_carry_audio_metadata_and_masks():
    audio, metadata = next(iter(AudioLoader(Numbers(), 4)))
    assert audio.shape == (4, 1, 8) and audio.dtype == torch.float32
    assert isinstance(metadata, tuple)
    for row, item in zip(audio, metadata, strict=True):
        mask = item["padding_mask"]
        assert mask.dtype == torch.bool and mask.shape == (8,)
        assert mask.tolist() == [position < 1 + row[0, 0] % 8 for position in range(8)]


def test_passes_differ_and_hold_every_item():
    first, second = passes(2, drop_last=False)
    assert first != second
    for number, epoch in enumerate((first, second)):
        assert sorted(key for batch in epoch for key in batch) == [(5, number, item) for item in range(23)]
    assert [len(batch) for batch in first] == [4] * 5 + [3]


def test_workers_do_not_change_anything():
    assert passes(2, num_workers=0) == passes(2, num_workers=2)


def test_two_ranks_are_one():
    ranks = [passes(2, rank=rank, world_size=2, drop_last=False) for rank in (0, 1)]
    for epoch in (0, 1):
        served = [key for rank in ranks for batch in rank[epoch] for key in batch]
        assert sorted(served) == [(5, epoch, item) for item in range(23)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_a_loader_goes_on_where_another_was(workers):
    whole = AudioLoader(Numbers(), 4, seed=5)
    reference = keys(whole) + keys(whole)
    first = AudioLoader(Numbers(), 4, seed=5, num_workers=workers)
    for taken in (0, 1, 3, 5, 7):
        loader, iterator = (AudioLoader(Numbers(), 4, seed=5), None) if taken else (first, None)
        served = []
        while len(served) < taken:
            iterator = iter(loader) if iterator is None else iterator
            try:
                served += keys([next(iterator)])
            except StopIteration:
                iterator = None
        state = loader.state_dict()
        assert all(type(value) is int for value in state.values()) and len(state) == 3
        other = AudioLoader(Numbers(), 4, seed=99, num_workers=2 - workers)
        other.load_state_dict(state)
        assert other.state_dict() == state
        assert (served + keys(other) + keys(other))[:10] == reference
        other.close()
    first.close()


def test_a_pass_left_early_is_taken_up():
    loader = AudioLoader(Numbers(), 4, seed=5, num_workers=1)
    first = keys([next(iter(loader)), next(iter(loader))])
    assert first + keys(loader) == keys(AudioLoader(Numbers(), 4, seed=5))
    loader.close()
    assert len(keys(loader)) == 5  # with new workers
    loader.close()


def test_lightnings_count_matters_only_before_the_first_batch():
    loader = AudioLoader(Numbers(), 4)
    loader.sampler.set_epoch(3)
    next(iter(loader))
    loader.sampler.set_epoch(7)
    assert loader.epoch == 3


def test_evaluation_passes_are_all_the_same_and_whole():
    loader = AudioLoader(Numbers(), 4, shuffle=False)
    next(iter(loader))
    first, second = keys(loader), keys(loader)
    assert first == second
    assert [key for batch in first for key in batch] == [(0, 0, item) for item in range(23)]
    assert len(loader) == 6


def test_a_data_set_that_shrank_begins_the_next_epoch(caplog):
    loader = AudioLoader(Numbers(8), 4)
    loader.load_state_dict({"seed": 0, "epoch": 1, "position": 20})
    assert {key[1] for batch in keys(loader) for key in batch} == {2}
    assert "resumed at item 20 of 8" in caplog.text


def test_too_few_items_for_a_batch():
    with pytest.raises(ConfigError, match=r'3 items do not fill one batch of 8\n.*"drop_last": false.*batch size of at most 3'):
        AudioLoader(Numbers(3), 8)
    assert [audio.shape for audio, _ in AudioLoader(Numbers(3), 8, drop_last=False)] == [(3, 1, 8)]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="expected at least 1 and 0"):
        AudioLoader(Numbers(), 0)
    with pytest.raises(ValueError, match="give both"):
        AudioLoader(Numbers(), 1, rank=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_went_bad_is_reported_once(workers, caplog):
    loader = AudioLoader(Numbers(bad="fault"), 4, num_workers=workers)
    with caplog.at_level(logging.WARNING):
        assert len(keys(loader)) == 5
    assert caplog.text.count("a.wav: cut") == 1
    assert loader.faults == {"a.wav": "cut"}
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_user_must_know_arrives_without_a_traceback(workers):
    loader = AudioLoader(Numbers(bad="error"), 4, num_workers=workers)
    with pytest.raises(ConfigError) as error:
        keys(loader)
    assert str(error.value) == "dataset: nothing can be read"
    loader.close()


@pytest.mark.slow
def test_workers_outlive_the_signals_that_stop_a_run_and_not_the_program():
    script = """
import os, signal, subprocess, sys
sys.path.insert(0, sys.argv[1])
from test_loader import AudioLoader, Numbers
loader = AudioLoader(Numbers(), 4, num_workers=1)
batches = iter(loader)
next(batches)
worker = loader._torch_loader._iterator._workers[0]
for name in ("TERM", "INT", "USR1"):
    subprocess.run(["kill", "-" + name, str(worker.pid)], check=True)
next(batches)
assert worker.is_alive()
loader._torch_loader._iterator = None  # as after an error: nobody remembers to end this worker
"""
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", script, here], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plain_data_sets_work_too():
    class Pairs(Dataset):
        parts = (Part(2, 2.0), Part(3))

        def __len__(self):
            return 5

        def __getitem__(self, index):
            return torch.full((2, 4), float(index)), {"index": index}

    class AtOnce(Pairs):
        def __getitems__(self, indices):
            return [(torch.zeros(2, 4), {"index": index, "of": len(indices)}) for index in indices]

    served = [item for _, metadata in AudioLoader(Pairs(), 3, drop_last=False) for item in metadata]
    assert sorted(item["index"] for item in served) == [0, 0, 1, 1, 2, 3, 4]
    assert all(item["padding_mask"].all() for item in served)
    _, metadata = next(iter(AudioLoader(AtOnce(), 3)))
    assert [item["of"] for item in metadata] == [3, 3, 3]


def test_what_crosses_to_the_training_process_has_no_masks():
    samples = [Sample(torch.zeros(2, 65536), {"path": "a"}, 40000)] * 4
    batch = collate(samples)
    assert len(pickle.dumps(batch)) < batch.audio.nbytes + 2000
    assert batch.valid_lengths == (40000,) * 4
