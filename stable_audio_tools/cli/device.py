"""Where to compute and in which precision, for commands that take `--device` and `--precision`."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What the flag says, and torch's name."""


def device_name(text: str) -> str:
    """The flag's value: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda, cuda:1 (the second GPU) or mps, got {text!r}")
    return text


def find_device(asked: str) -> torch.device:
    """The device of that name; auto: the first GPU, else the CPU.

    Raises:
        ConfigError: this machine has none.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return torch.device("cuda" if count else "cpu")
    if asked.startswith("cuda") and int(asked.partition(":")[2] or 0) >= count:
        found = "no GPU can be used here" if not count else "1 GPU is here, cuda:0" if count == 1 else f"{count} GPUs are here, cuda:0 on"
        raise _absent(asked, found)
    if asked == "mps" and not torch.backends.mps.is_available():
        raise _absent(asked, "this machine, or this build of torch, has no Apple GPU")
    return torch.device(asked)


def find_precision(asked: str | None) -> torch.dtype:
    """torch's type; None is fp32."""
    import torch

    return getattr(torch, PRECISIONS[asked or "fp32"])


def out_of_memory(error: Exception) -> bool:
    """Whether it says that a GPU or the machine has no memory left."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _absent(asked: str, why: str) -> ConfigError:
    return ConfigError([Problem((), why, "leave it out, or choose cpu")], source=f"--device {asked}")
