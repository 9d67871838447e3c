"""The user's own Python for metadata: `get_custom_metadata(info, audio) -> dict`, from a file that a dataset config names.

What it returns is added to the clip's metadata and wins over it. Three keys are instructions: `__reject__`, true: another clip
stands in; `__audio__`: more audio by metadata key, cut and padded as the clip itself; `__replace__`: latents to train on in place
of stored ones. This runs code that a config points at, so it needs `allow_code`; a config from elsewhere runs nothing without it.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.audio.io import shown, to_channels
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.source import Path as Place

FUNCTION = "get_custom_metadata"
REJECT, AUDIO, REPLACE = "__reject__", "__audio__", "__replace__"


class RejectedError(ValueError):
    """The module answered `__reject__`: the clip is not to be served."""


class Answer(NamedTuple):
    """What the module says about a clip. audio: further recordings, by metadata key. replacement: other latents."""

    metadata: dict[str, Any]
    audio: dict[str, Tensor]
    replacement: Tensor | None


def require_permission(code: Iterable[tuple[Place, str]], allow_code: bool) -> None:
    """Raises ConfigError where code may not run, or its file is not there.

    Args:
        code: Python files, with their places in the config.
    """
    ask = "if you trust it, pass --allow-code (in Python: allow_code=True); captions in .txt, .json or a metadata.csv need no code"
    problems = []
    for place, path in code:
        if not allow_code:
            problems.append(Problem(place, "runs Python code, which is off unless asked for", ask, path))
        elif not Path(path).is_file():
            problems.append(Problem(place, "no such file", "the path is relative to where the program starts", path))
    if problems:
        raise ConfigError(problems, "dataset config")


def custom_metadata(path: str, info: Mapping[str, Any], audio: Tensor) -> Answer:
    """What the module says about a clip.

    Args:
        info: the clip's metadata, `padding_mask` included. audio: (C, T).

    Raises:
        RejectedError: the module rejects the clip.
        ConfigError: the module fails, or its answer cannot be used.
    """
    item = shown(str(info["path"]))
    try:
        answer = _function(path)(dict(info), audio)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the user's code may raise anything
        _blame(path, f"{FUNCTION} failed on {item}", error)
    if not isinstance(answer, dict):
        raise ConfigError(f"{FUNCTION} returned {type(answer).__name__} for {item}; expected a dict", path)
    if answer.get(REJECT):
        raise RejectedError(f"rejected by {path}")
    more, replacement = answer.get(AUDIO) or {}, answer.get(REPLACE)
    if not isinstance(more, dict) or not all(_is_sound(sound) for sound in more.values()):
        expected = "a dict of floating-point tensors, each (C, T) or (T,)"
        raise ConfigError(f"{FUNCTION} returned {AUDIO} for {item} that is no audio; expected {expected}", path)
    if replacement is not None and not (isinstance(replacement, Tensor) and replacement.ndim == 2):
        raise ConfigError(f"{FUNCTION} returned {REPLACE} for {item} that is no tensor (C, T)", path)
    rest = {key: value for key, value in answer.items() if key not in (REJECT, AUDIO, REPLACE)}
    return Answer(rest, dict(more), replacement)


def part_beside(sound: Tensor, channels: int, start: int, size: int) -> Tensor:
    """The part of another recording that goes with a clip, (channels, size) in [-1, 1], with zeros behind its end.

    A recording that is longer than the clip is one of the whole file, such as a stem, and cut at the same place; one that is not
    begins where the clip does. (Upstream cuts each at a place of its own.)

    Args:
        sound: (C, T) or (T,), at the clip's sample rate. start: the clip's first sample in the file. size: samples of the clip.

    Raises:
        ValueError: it has other channels, or ends before the clip begins.
    """
    sound = to_channels(sound if sound.ndim == 2 else sound[None], channels)
    if sound.shape[-1] > size:
        if sound.shape[-1] <= start:
            raise ValueError(f"it ends after {sound.shape[-1]} samples, before the clip begins at {start}; give one of the whole file")
        sound = sound[:, start : start + size]
    return F.pad(sound.clamp(-1, 1), (0, size - sound.shape[-1]))


def _is_sound(sound: Any) -> bool:
    return isinstance(sound, Tensor) and sound.ndim in (1, 2) and sound.is_floating_point() and sound.numel() > 0


@lru_cache
def _function(path: str) -> Callable[[dict[str, Any], Tensor], Any]:
    """Loaded once in each process."""
    name = f"custom_metadata_{blake2b(path.encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("not a Python file", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses of the module look their annotations up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # likewise
        _blame(path, "the module cannot be loaded", error)
    if not callable(function := getattr(module, FUNCTION, None)):
        raise ConfigError(f"defines no function {FUNCTION}(info, audio)", path)
    return function


def _blame(path: str, what: str, error: BaseException) -> NoReturn:
    """Raise a ConfigError with the line of the user's file that `error` comes from."""
    if isinstance(error, ConfigError):
        raise error
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == path else lines[-1] if lines else None
    place = path if line is None else f"{path}:{line}"
    raise ConfigError(f"{what}: {type(error).__name__}: {error}", place) from error
