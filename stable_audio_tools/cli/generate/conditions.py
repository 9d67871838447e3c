"""What a model's conditioners are told about each clip, checked before anything is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

from .sounds import SoundCondition
from .wishes import Wish

TIMES = ("seconds_start", "seconds_total")


class ConditionReader:
    """Of one model: which conditions it has, and the metadata of a clip for them.

    ids: its conditions that are in use. sounds: those that are sounds, by metadata key.
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any]):
        conditioner: Any = getattr(model, "conditioner", None)
        used = [] if conditioner is None else [name for name in conditioner.conditioners if name not in conditioner.idle]
        self.ids = tuple(used)
        self._conditioners = {name: conditioner.conditioners[name] for name in used if name not in conditioner.pre_encoded_keys}
        self._keys = {name: {name, conditioner.default_keys.get(name, name)} for name in used}
        self._known = set().union(*self._keys.values())
        entries = (config["model"].get("conditioning") or {}).get("configs", ())
        params = {entry["id"]: entry.get("config") or {} for entry in entries}
        taken = {name: SoundCondition.of(each, params[name], model.sample_rate) for name, each in self._conditioners.items()}  # type: ignore[arg-type]
        self.sounds = {key: sound for name, sound in taken.items() if sound is not None for key in self._keys[name]}
        self._counts_seconds = any(entry["id"] == "seconds_total" and entry["type"] == "int" for entry in entries)

    @property
    def has_prompt(self) -> bool:
        return "prompt" in self._known

    @property
    def knows_length(self) -> bool:
        return "seconds_total" in self._known

    def metadata(self, wishes: Sequence[Wish], seconds: Sequence[float], source: str) -> list[dict[str, Any]]:
        """The metadata of each clip: exactly what the model's conditioners read.

        Args:
            seconds: how long each clip is.
            source: names the model, for messages.

        Raises:
            ConfigError: a condition is missing, or given to a model that has none of its name, or has a value that means nothing.
        """
        metadata, problems = [], []
        for wish, length in zip(wishes, seconds, strict=True):
            times = {key: value for key, value in self._times(length).items() if key in self._known}
            item = times | dict(wish.conditions) | ({} if wish.prompt is None else {"prompt": wish.prompt})
            found = [*self._misnamed(wish)] or [*self._missing(item)] or [*self._misvalued(item, wish)]
            place = f"{wish.place}: " if wish.place else ""
            problems += [Problem((), f"{place}{problem.message}", problem.fix) for problem in found]
            metadata.append(item)
        if problems:
            raise ConfigError(dict.fromkeys(problems), source=source)
        return metadata

    def _times(self, seconds: float) -> dict[str, Any]:
        """seconds_start and seconds_total; whole ones for conditioners that count them."""
        return {"seconds_start": 0, "seconds_total": math.ceil(seconds) if self._counts_seconds or seconds == int(seconds) else seconds}

    def _misnamed(self, wish: Wish) -> Iterator[Problem]:
        flag = "" if wish.place else "--cond "
        for key in wish.conditions:
            if key not in self._known:
                yield Problem((), f"{flag}{key}: the model has no such condition", did_you_mean(key, sorted(self._known)))
        if wish.prompt is not None and not self.has_prompt:
            name = "prompt" if wish.place else "--prompt"
            yield Problem((), f"{name}: the model has no condition of that name", f"its conditions: {', '.join(self.ids) or 'none'}")
        if wish.prompt is not None and "prompt" in wish.conditions:
            yield Problem((), f"{flag}prompt: given by --prompt too", "keep one")
        yield from self._missing(dict.fromkeys([*TIMES, *wish.conditions, *(["prompt"] if wish.prompt is not None else [])]))

    def _missing(self, item: Mapping[str, Any]) -> Iterator[Problem]:
        missing = [name for name, keys in self._keys.items() if not keys & item.keys()]
        if missing:
            fix = " ".join("--prompt TEXT" if name == "prompt" else f"--cond {name}=VALUE" for name in missing)
            yield Problem((), f"its conditions are {', '.join(self.ids)}; missing: {', '.join(missing)}", f"add {fix}")

    def _misvalued(self, item: Mapping[str, Any], wish: Wish) -> Iterator[Problem]:
        for name, conditioner in self._conditioners.items():
            key = name if name in item else next(key for key in self._keys[name] if key in item)
            value, given = item[key], key in wish.conditions or key == "prompt"
            if key in self.sounds:
                yield from (Problem((), f"{key}: {problem.message}", problem.fix) for problem in self.sounds[key].problems(value))
                continue
            try:
                conditioner.parse(value)
            except ValueError as error:
                yield Problem((), f"{key}: {error}")
                continue
            low, high = getattr(conditioner, "min_val", None), getattr(conditioner, "max_val", None)
            if low is None or high is None or low <= float(value) <= high:
                continue
            message = f"{key}: {value:g} is outside of what the model tells apart, {low:g} to {high:g}"
            yield Problem((), message, "choose a number inside" if given else f"choose --seconds inside, or say --cond {key}={high:g}")
