"""What is to be made, as typed objects, from the values of a form by name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.diffusion.guidance import Guidance

from .form import CONDITION, OPTION, Form

FRESH = -1
MOST_SEED = 2**31
GUIDANCE = ("cfg_scale", "scale_phi", "apg_scale", "apg_momentum", "cfg_norm_threshold", "batch_cfg")


class Region(NamedTuple):
    """A part of a sound, in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class DiffusionRequest:
    """Clips of a diffusion model.

    conditions: by id; paths stand for audio. guidance: None where the model has no conditions. seed: of the first clip, the next
    has the next. region: the part of `inpaint_audio` that is made anew.
    """

    seconds: float
    steps: int
    sampler: str
    seed: int
    clips: int = 1
    conditions: Mapping[str, Any] = field(default_factory=dict)
    negative_prompt: str = ""
    guidance: Guidance | None = None
    sampler_options: Mapping[str, float] = field(default_factory=dict)
    init_audio: Path | None = None
    init_noise_level: float = 1.0
    inpaint_audio: Path | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        problems = _idle_negative(self.negative_prompt, 1.0 if self.guidance is None else self.guidance.cfg_scale)
        if self.inpaint_audio is not None and self.region is None:
            problems.append(
                Problem((), "The part to make anew: none is chosen", "drag over the waveform, or type where it starts and ends")
            )
        if self.region is not None and not 0 <= self.region.start < self.region.end:
            start, end = self.region
            problems.append(Problem((), f"The part to make anew: it goes from {start:g} to {end:g} s", "let it start before it ends"))
        elif self.region is not None and self.region.start >= self.seconds:
            message = f"The part to make anew: it starts at {self.region.start:g} s, and the clip ends at {self.seconds:g} s"
            problems.append(Problem((), message, "choose an earlier part, or more Seconds"))
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class ReconstructionRequest:
    """A sound through an autoencoder and back; None stands for what the model has or does not take."""

    audio: Path
    seed: int
    steps: int | None = None
    num_quantizers: int | None = None
    latent_noise: float = 0.0


@dataclass(frozen=True)
class LanguageRequest:
    """Clips of a language model; fields that it shares with `DiffusionRequest` mean the same."""

    seconds: float
    seed: int
    clips: int = 1
    conditions: Mapping[str, Any] = field(default_factory=dict)
    negative_prompt: str = ""
    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    init_audio: Path | None = None

    def __post_init__(self) -> None:
        if problems := _idle_negative(self.negative_prompt, self.cfg_scale):
            raise ConfigError(problems)


Request = DiffusionRequest | ReconstructionRequest | LanguageRequest


def request_of(form: Form, values: Mapping[str, Any]) -> Request:
    """What the values ask for; a fresh seed is drawn where none is given.

    Raises:
        ConfigError: all that is wrong with them.
    """
    read = form.read(values)
    if read["seed"] == FRESH:
        read["seed"] = secrets.randbelow(MOST_SEED)
    if form.work == "reconstruction":
        return ReconstructionRequest(**read)
    read["conditions"] = _conditions(read)
    if form.work == "language":
        return LanguageRequest(**read)
    read["sampler_options"] = {name: value for name, value in _taken(read, OPTION).items() if value is not None}
    read["guidance"] = _guidance(read)
    if read["init_audio"] is None:
        read["init_noise_level"] = 1.0
    if read.get("region") is not None:
        read["region"] = None if read["inpaint_audio"] is None else _region(read["region"])
    return DiffusionRequest(**read)


def _idle_negative(prompt: str, cfg_scale: float) -> list[Problem]:
    if not prompt.strip() or cfg_scale != 1:
        return []
    return [Problem((), "Negative prompt: it acts through guidance, and 1 is none", "set Guidance to 3, say, or remove it")]


def _taken(read: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose names begin so, without that; they are taken out."""
    names = [name for name in read if name.startswith(prefix)]
    return {name.removeprefix(prefix): read.pop(name) for name in names}


def _conditions(read: dict[str, Any]) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    for name, value in _taken(read, CONDITION).items():
        condition, dot, source = name.partition(".")
        if not dot:
            conditions[name] = value
        elif value is not None:
            conditions.setdefault(condition, {})[source] = value
    return conditions


def _guidance(read: dict[str, Any]) -> Guidance | None:
    if "cfg_scale" not in read:
        return None
    interval = (read.pop("interval_low"), read.pop("interval_high"))
    return Guidance(cfg_interval=interval, **{name: read.pop(name) for name in GUIDANCE})


def _region(value: Any) -> Region:
    """A part from what the waveform says: a mapping with `start` and `end`."""
    try:
        return Region(float(value["start"]), float(value["end"]))
    except (KeyError, TypeError, ValueError):
        message = f"The part to make anew: expected where it starts and ends, got {value_text(value)}"
        raise ConfigError([Problem((), message, "drag over the waveform")]) from None
