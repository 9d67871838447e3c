"""Where a pretrained codec's files lie: at a path of the config, in a cache, or to be downloaded when the codec is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.configs.errors import ConfigError, Problem, path_text
from stable_audio_tools.models.checkpoint_error import bad_file

LOCAL = 'give a local copy: "path": "FILE OR FOLDER"'


def one_of(path: Path, patterns: Sequence[str]) -> Path:
    """`path` itself if it is no folder, else the file in it that the first fitting pattern finds.

    Raises:
        CheckpointError: the folder has no such file, or several.
    """
    if not path.is_dir():
        return path
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise bad_file(path, f"has several weight files: {', '.join(file.name for file in found)}", "name one of them")
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise bad_file(path, f"the folder has no {' or '.join(patterns)}; it has {inside}", "name the folder of the codec, or its file")


def told_at(key: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; what is wrong with the file is told as the fault of `key`, for a validator."""
    try:
        return read()
    except ConfigError as error:
        problems = [replace(p, path=(key,), message=_with_place(p, error.source), span=None) for p in error.problems]
        raise ConfigError(problems) from None


def _with_place(problem: Problem, source: str) -> str:
    return ": ".join(part for part in (source, path_text(problem.path), problem.message) if part)


def download(url: str, target: Path) -> Path:
    """The file at `url`, kept at `target` for the next time.

    Raises:
        ConfigError: it cannot be had.
    """
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), progress=False)
    except OSError as error:
        raise ConfigError([Problem((), f"cannot be downloaded: {error}", f"{LOCAL}, or put the file at {target}")], url) from None
    return target


def hub_file(repository: str, name: str) -> Path:
    """A file of a hub repository, downloaded or from the hub's cache.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        message = "fetching it from the hub needs the package huggingface_hub"
        raise ConfigError([Problem((), message, f'pip install -e ".[hub]", or {LOCAL}')], repository) from None
    try:
        return Path(hf_hub_download(repository, name))
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors, but for a name that is none
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError([Problem((), f"the hub does not give {name}: {reason}", LOCAL)], repository) from None
