"""The user's own Python for metadata: `get_custom_metadata(info, audio) -> dict`, from a file that a dataset config names.

This runs code that a config points at, so it needs `allow_code`; a config from elsewhere runs nothing without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.source import Path as Place

FUNCTION = "get_custom_metadata"
UNAVAILABLE = {"__audio__": "audio beside the clip's own", "__replace__": "other latents than the clip's"}


class RejectedError(ValueError):
    """The module answered `__reject__`: the clip is not to be served."""


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


def custom_metadata(path: str, info: Mapping[str, Any], audio: Tensor) -> dict[str, Any]:
    """What the module says about a clip.

    Args:
        info: the clip's metadata, `padding_mask` included. audio: (C, T).

    Raises:
        RejectedError: the module rejects the clip.
        ConfigError: the module fails, or does not return a dict, or wants what does not exist yet.
    """
    try:
        answer = _function(path)(dict(info), audio)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"{FUNCTION} failed on {info['path']}: {type(error).__name__}: {error}", path) from error
    if not isinstance(answer, dict):
        raise ConfigError(f"{FUNCTION} returned {type(answer).__name__} for {info['path']}; expected a dict", path)
    for key, what in UNAVAILABLE.items():
        if key in answer:
            raise ConfigError(f"{FUNCTION} returned {key!r} ({what}), which is not available yet", path)
    if answer.pop("__reject__", False):
        raise RejectedError(f"rejected by {path}")
    return answer


@lru_cache
def _function(path: str) -> Callable[[dict[str, Any], Tensor], Any]:
    """Loaded once in each process."""
    spec = importlib.util.spec_from_file_location(f"custom_metadata_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError("not a Python file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(function := getattr(module, FUNCTION, None)):
        raise ConfigError(f"defines no function {FUNCTION}(info, audio)", path)
    return function
