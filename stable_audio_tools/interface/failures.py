"""What went wrong, as sentences for the person in front of the page."""

from __future__ import annotations

import errno
import logging

import torch

from stable_audio_tools.configs.errors import ConfigError

log = logging.getLogger(__name__)

OUT_OF_MEMORY = """There is not enough memory for this. What helps, the cheapest first:
  = fewer Clips at once
  = fewer Seconds
  = Guidance 1, or "Both passes at once" off: one pass of the model needs half as much
  = end other programs that use the same GPU"""
MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")  # torch's, by backend
DISK_FULL = "The disk is full. Make room, or start the page with --out on another disk."


class Stopped(Exception):
    """The visitor has pressed Stop."""


def sentence(error: Exception) -> str:
    """What to show for an error; one that nobody expected is logged with its traceback."""
    if isinstance(error, Stopped):
        return "Stopped."
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error).lower() for words in MEMORY_WORDS):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DISK_FULL
    if isinstance(error, ValueError) and str(error):
        return str(error)
    log.error("the page met an error", exc_info=error)
    cause = f"{type(error).__name__}: {error}"
    return f"This failed in a way that the page did not expect ({cause}). The terminal that it runs in shows the details."
