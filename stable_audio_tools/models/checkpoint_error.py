"""The error that says what is wrong with a weight file and what to do about it."""

from __future__ import annotations

from os import PathLike

from stable_audio_tools.configs.errors import ConfigError, Problem


class CheckpointError(ConfigError):
    """A file that cannot give the weights asked of it: missing, damaged, unsafe, of another model."""


def bad_file(path: str | PathLike[str], what: str, fix: str) -> CheckpointError:
    """The error for the file at `path`: what is wrong with it, and what to do."""
    return CheckpointError([Problem((), what, fix)], source=str(path))
