"""`train` in a process that a drill may kill: forked, since importing torch and Lightning anew would take most of its time."""

import json
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from stable_audio_tools.cli.main import main
from stable_audio_tools.models.atomic_file import MARK
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO

fork = multiprocessing.get_context("fork")


class Run:
    """One run folder, and processes that work on it one after the other.

    Args:
        root: where model.json is written and runs go.
        options: flags of `train`, beside those that every drill has.
    """

    def __init__(self, root, config, *options):
        self.root, self.folder = Path(root), Path(root) / "runs" / "run"
        (self.root / "model.json").write_text(json.dumps(config))
        fixed = ["--save-dir", self.root / "runs", "--name", "run", "--logger", "csv", "--log-every", "1", "--accelerator", "cpu"]
        self.arguments = ["train", "--model-config", self.root / "model.json", *fixed, "--num-workers", "0", "--val-every", "0", *options]
        self.said = self.root / "said.txt"

    def start(self, *options, prepare=lambda: None):
        """A process that trains; `prepare` runs in it first."""
        process = fork.Process(target=_work, args=([str(a) for a in (*self.arguments, *options)], self.said, prepare))
        process.start()
        return process

    def finish(self, *options, seconds=200):
        """Train to the end, which must succeed."""
        process = self.start("--recover", *options)
        assert ended(process, seconds) == 0, self.said.read_text()
        return self.weights()

    def weights(self):
        return load_file(self.folder / "exports" / "model.safetensors")

    def state(self):
        return json.loads((self.folder / "run.json").read_text())

    def checkpoints(self):
        """All of them, each of which must be whole."""
        found = sorted((self.folder / "checkpoints").glob("*.ckpt"))
        for path in found:
            AtomicCheckpointIO().load_checkpoint(path)
        return [path.name for path in found]

    def leftovers(self):
        return [path.name for path in self.folder.rglob(f"*{MARK}*")]


def ended(process, seconds):
    """The exit status of a process that ends within so many seconds; minus the signal's number if one killed it."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"still running after {seconds} s")
    return process.exitcode


def wait_for(condition, process, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "ended before it came to that"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def _work(arguments, said, prepare):
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    logging.getLogger().handlers.clear()  # those of pytest, which the command would take for its own
    os.chdir(said.parent)
    prepare()
    sys.exit(main(arguments))
