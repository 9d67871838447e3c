"""The layout of stable-audio-tools 0.0.x: its parameter names are ours, so what matters is what its models do not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stable_audio_tools.configs.errors import ConfigError, Problem

PROGRAM = "stable-audio-tools 0.0.x"
KEEP = "--format native keeps it"
OWN_TYPES = {"bytes": "conditioner", "log_spectrogram": "pretransform", "softnorm": "bottleneck"}
OWN_KEYS = ("codebook_pattern_options", "path")
AS_THERE = {"causal_cross_attention": True, "mask_condition_padding": False}
"""Keys that are not there, by the value that its models behave like."""
IDLE_KEYS = ("activation_checkpointing", "backend", "model_dim")
"""Keys that are not there, and change nothing of what a model makes."""
SHIFT = "distribution_shift_options"

Path = tuple[str | int, ...]


def peer_document(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The model config as that program reads it.

    Args:
        document: a valid model config.
        source: where it comes from, for messages.

    Raises:
        ConfigError: the model has parts that are not there; every one is named.
    """
    problems = [problem for path, section in _objects(document["model"], ("model",)) for problem in _own_parts(path, section)]
    if problems:
        raise ConfigError(problems, source)
    written = {**document, "model": _without_own_keys(document["model"])}
    diffusion = written["model"].get("diffusion") or {}
    shift = diffusion.get(SHIFT) or {}
    if shift.pop("type", None) == "none":
        del diffusion[SHIFT]
    return written


def _without_own_keys(value: Any) -> Any:
    """A copy of a JSON value without the keys that are said by their absence."""
    if isinstance(value, Mapping):
        return {key: _without_own_keys(entry) for key, entry in value.items() if key not in (*IDLE_KEYS, *AS_THERE)}
    return [_without_own_keys(entry) for entry in value] if isinstance(value, list) else value


def _objects(value: Any, path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every object inside `value`, itself included."""
    if isinstance(value, Mapping):
        yield path, value
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _objects(entry, (*path, key))


def _own_parts(path: Path, section: Mapping[str, Any]) -> Iterator[Problem]:
    kind = section.get("type")
    if path[-1] == SHIFT:
        if kind not in (None, "length", "full", "none"):
            yield Problem((*path, "type"), f"{PROGRAM} shifts timesteps by length alone", KEEP, kind)
    elif isinstance(kind, str) and kind in OWN_TYPES:
        yield Problem((*path, "type"), f"{PROGRAM} has no {OWN_TYPES[kind]} of this type", KEEP, kind)
    elif kind == "vae" and (section.get("config") or {}).get("mode", "sample") != "sample":
        message = f"{PROGRAM} always draws latents"
        yield Problem((*path, "config", "mode"), message, f"{KEEP}; or name a config without it by --model-config", "mean")
    if path[-1] in ("config", "lm"):
        yield from _own_keys(path, section)
    if path == ("model", "diffusion") and section.get("prediction", "velocity") != "velocity":
        yield Problem((*path, "prediction"), f"networks of {PROGRAM} predict the velocity", KEEP, section["prediction"])


def _own_keys(path: Path, section: Mapping[str, Any]) -> Iterator[Problem]:
    for key in OWN_KEYS:
        if section.get(key) is not None:
            yield Problem((*path, key), f"{PROGRAM} has no such key", KEEP, section[key], on_key=True)
    for key, there in AS_THERE.items():
        if section.get(key, there) != there:
            yield Problem((*path, key), f"models of {PROGRAM} behave as if it were {str(there).lower()}", KEEP, section[key])
