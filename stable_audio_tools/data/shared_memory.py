"""A batch in memory that the training process sees, filled by a worker process at half the cost of filling a tensor."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


def can_share() -> bool:
    """Whether this is a worker process, which shares memory by handing over open files."""
    return get_worker_info() is not None and torch.multiprocessing.get_sharing_strategy() == "file_descriptor" and hasattr(os, "pwrite")


def stacked_in_shared_memory(sounds: Sequence[Tensor], length: int) -> Tensor:
    """(..., T) each, T up to `length`, to (B, ..., length), padded with zeros.

    The bytes go through the file of the memory: a store to each page that is new costs the system more than writing it, and
    where the memory is full this is an error and not the end of the process.

    Raises:
        OSError: there is not enough shared memory.
    """
    first = sounds[0]
    shape = (len(sounds), *first.shape[:-1], length)
    row = length * first.element_size()
    memory = first.untyped_storage()._new_shared(math.prod(shape) * first.element_size(), device=first.device)
    file = memory._share_fd_cpu_()[0]  # open as long as `memory` is; its pages are zeros
    place = 0
    for sound in sounds:
        whole = sound.shape[-1] == length
        for part in (sound,) if whole else sound.reshape(-1, sound.shape[-1]):
            _write(file, part, place)
            place += row * (part.numel() // length) if whole else row
    return first.new_empty(0).set_(memory).view(shape)


def _write(file: int, part: Tensor, place: int) -> None:
    data: Any = part.reshape(-1).view(torch.uint8).numpy()
    while len(data):
        done = os.pwrite(file, data, place)
        if not done:
            raise OSError(errno.ENOSPC, "shared memory (/dev/shm) is full")
        data, place = data[done:], place + done
