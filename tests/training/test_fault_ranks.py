"""Faults of one process of several: all of them skip the same step, stop together, and none waits for one that is gone."""

import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from ranks import Ranks, batches, train
from test_distributed import command, environment
from test_faults import WAYS

from stable_audio_tools.training.checkpoint_io import newest_good_checkpoint

pytestmark = pytest.mark.slow
FAULTY = 1


class Spoil(pl.Callback):
    def __init__(self, way):
        self.way = way

    def on_train_start(self, trainer, pl_module):
        if pl_module.global_rank == FAULTY:
            WAYS[self.way](pl_module, None, {2})


class NaNs:
    """Batches of which, on the faulty rank, the third has a NaN."""

    def __init__(self, loader):
        self.loader, self.close = loader, loader.close

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for index, (audio, metadata) in enumerate(self.loader):
            bad = index == 2 and torch.distributed.get_rank() == FAULTY
            yield audio.index_fill(-1, torch.tensor([3]), math.nan) if bad else audio, metadata


def with_a_bad_step(folder, way):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("stable_audio_tools.training.module").addHandler(handler)
    config = configs.text_to_audio()
    loader = batches(config, 2, 64)
    spoil = () if way == "input" else (Spoil(way),)
    module = train(config, NaNs(loader) if way == "input" else loader, folder, *spoil, steps=5, processes=2)[0]
    weights = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    return weights, (module.train_step, module.guard.skipped, module.guard.in_a_row), messages


@pytest.fixture(scope="module")
def both():
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_is_bad_on_one_rank_is_skipped_on_all_and_its_rank_is_named(way, tmp_path, both):
    (first, counts, said), (second, *same) = both(with_a_bad_step, tmp_path, way)
    assert counts == (5, 1, 0) and same == [counts, said]
    assert all(torch.equal(value, second[name]) and value.isfinite().all() for name, value in first.items())
    (message,) = [line for line in said if "is skipped" in line]
    assert message.startswith("step 3 is skipped: ")
    assert ("rank 0: " in message) == (way == "gradient") and "rank 1: " in message  # a gradient is known when it is averaged


def started(folder, *flags):
    line = command(folder, "text_to_audio", "--devices", "2", "--max-steps", "100000", "--checkpoint-every", "0", *flags)
    process = subprocess.Popen(line, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (folder / "rank1.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    return process


def child_of(process):
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in found if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.parametrize("whom", ["the first", "the second"])
def test_a_rank_that_is_killed_takes_the_others_with_it(whom, tmp_path):
    process = started(tmp_path)
    child = child_of(process)
    os.kill(process.pid if whom == "the first" else child, signal.SIGKILL)
    assert process.wait(30) != 0
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_rank_that_stands_still_ends_the_run_and_each_says_where_it_was(tmp_path):
    process = started(tmp_path, "--max-stall-minutes", "0.15", "--val-every", "0")
    child = child_of(process)
    os.kill(child, signal.SIGSTOP)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert re.search(r"rank 0 stands still: nothing has moved for 9 s, .*train step \d+", said) and "most recent call first" in said


def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path):
    process = started(tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    steps = {torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["step"] for rank in (0, 1)}
    saved = newest_good_checkpoint(tmp_path / "runs" / "run" / "checkpoints")
    assert len(steps) == 1 and saved.name == f"step={steps.pop():08d}.ckpt"
