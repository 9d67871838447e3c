"""torch's own file format, written so that a full disk is reported as what it is."""

from __future__ import annotations

import io
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from stable_audio_tools.models.atomic_file import atomic_file
from stable_audio_tools.models.checkpoints import CONFIG_KEY


def save_ckpt(path: str | PathLike[str], state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights for inference as upstream does, and their config with them; the file appears whole or not at all.

    Raises:
        OSError: no space, no permission and the like; what was at `path` stays.
    """
    with atomic_file(Path(path)) as file:
        write_torch({"state_dict": dict(state), CONFIG_KEY: dict(config)}, file)


def write_torch(content: Mapping[str, Any], file: BinaryIO) -> None:
    """`torch.save`, for files that may meet a full disk.

    Raises:
        OSError: the operating system's own, with its number.
    """
    sink = _Sink(file)
    try:
        torch.save(content, cast(IO[bytes], sink))
    except RuntimeError:
        if sink.error is not None:  # torch reports it as an unexpected position in the archive
            raise sink.error from None
        raise
    file.flush()


class _Sink(io.RawIOBase):
    """A file for `torch.save` that remembers the operating system's error."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise
