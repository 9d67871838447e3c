"""Training checkpoints that a crash, a full disk or a flipped bit cannot spoil.

A checkpoint appears under its name only when it is whole, on the disk, and known to load again; torch's archive carries a CRC-32 of
every record, which loading verifies. So of several files the newest good one is found by looking into them, not at their names.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import nn

from stable_audio_tools.models.atomic_file import atomic_file, remove_stale
from stable_audio_tools.models.checkpoint_error import CheckpointError, bad_file
from stable_audio_tools.models.checkpoints import match_weights
from stable_audio_tools.models.torch_file import write_torch
from stable_audio_tools.models.weight_files import read_torch_file
from stable_audio_tools.training.module import CHECKPOINT_KEY

log = logging.getLogger(__name__)

SAVED_AT_KEY = "saved_at_ns"  # wall clock in the file itself: a copied folder loses the file times
SUFFIX = ".ckpt"


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. What was there before is as it was."""


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's door to checkpoint files: written whole or not at all, verified when read, nothing in them is executed.

    A checkpoint may hold tensors, numbers, strings, lists and dicts; anything else is refused when saving, since a weights-only
    load would refuse it when it is needed.
    """

    def __init__(self) -> None:
        self._cleaned: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, making its folder where needed.

        Raises:
            CheckpointWriteError: the disk is full, the folder read-only and the like; no file of this name is left half written.
            TypeError: the checkpoint holds something that would not load again.
        """
        if storage_options is not None:
            raise TypeError("storage_options has no meaning for local files")
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._clean(path.parent)
            with atomic_file(path) as file:
                _write({**checkpoint, SAVED_AT_KEY: time.time_ns()}, file)
        except OSError as error:
            raise _write_error(path, error) from error

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read and verify a checkpoint. It is always read weights-only, also where Lightning asks for less care.

        Raises:
            CheckpointError: the file is missing, damaged, unsafe or no training checkpoint; names a good one beside it.
        """
        path = Path(path)
        try:
            content = read_torch_file(path, map_location=map_location or "cpu")
        except OSError as error:
            raise bad_file(path, f"cannot be read: {error.strerror or error}", "check its permissions") from None
        except CheckpointError as error:
            (problem,) = error.problems
            beside = newest_good_checkpoint(path.parent, besides=path) if path.parent.is_dir() else None
            raise bad_file(path, problem.message, f"{problem.fix}, or go on from {beside}" if beside else problem.fix) from None
        if "optimizer_states" not in content:
            raise bad_file(path, "weights, not the state of a training", "--pretrained-ckpt-path starts a new training from weights")
        return content

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)

    def _clean(self, folder: Path) -> None:
        """Before the first save into a folder, remove what a killed run left there half written."""
        if folder not in self._cleaned:
            remove_stale(folder)
            self._cleaned.add(folder)


def newest_good_checkpoint(folder: Path, *, besides: Path | None = None) -> Path | None:
    """The checkpoint in `folder`, other than `besides`, that was saved last and is whole; None where there is none.

    Damaged newer ones are skipped with a warning that names the cause.
    """
    others = (path for path in folder.glob(f"*{SUFFIX}") if path != besides)
    for path in sorted(others, key=lambda path: (_saved_at(path), path.name), reverse=True):
        try:
            read_torch_file(path)
        except (CheckpointError, OSError) as error:
            log.warning("skipping a checkpoint that cannot be used: %s", error)
        else:
            return path
    return None


def step_of(path: Path) -> int:
    """The train step of a checkpoint that `load_checkpoint` accepts; 0 for one that does not say."""
    return read_torch_file(path, verify=False).get(CHECKPOINT_KEY, {}).get("train_step", 0)


def check_fits(path: Path, module: nn.Module) -> None:
    """Whether the weights of a checkpoint have their places in `module`, before anything of it is restored.

    Raises:
        CheckpointError: it is of another model or another kind of training.
    """
    saved = read_torch_file(path, verify=False)["state_dict"]
    given, wanted = ({k: v for k, v in state.items() if isinstance(v, torch.Tensor)} for state in (saved, module.state_dict()))
    report = match_weights(given, wanted)[1]
    other = sorted((saved.keys() - given.keys()) ^ (module.state_dict().keys() - wanted.keys()))  # of parts that are no tensors
    if other or not report.complete:
        what = f"does not fit this training: {report.counts}\n{report.details}" if not report.complete else f"{other[0]} is in one alone"
        fix = "resume with the configs it was made with, or start anew from its weights with --pretrained-ckpt-path"
        raise bad_file(path, what, fix)


def _saved_at(path: Path) -> int:
    """Nanoseconds of wall clock; the file's own time where the file cannot tell."""
    try:
        return read_torch_file(path, verify=False)[SAVED_AT_KEY]
    except (CheckpointError, OSError, KeyError):
        return path.stat().st_mtime_ns


def _write(content: dict[str, Any], file: BinaryIO) -> None:
    write_torch(content, file)
    try:
        read_torch_file(Path(file.name), verify=False)
    except CheckpointError as error:
        raise TypeError(
            f"this training state could not be loaded again: {error.problems[0].message}; keep tensors, numbers or text"
        ) from None


def _write_error(path: Path, error: OSError) -> CheckpointWriteError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason += f", {shutil.disk_usage(path.parent).free / 1e9:.2f} GB free"
    wrapped = CheckpointWriteError(f"cannot save {path}: {reason}; earlier checkpoints are as they were")
    wrapped.errno = error.errno
    return wrapped
