"""Learning rate and steps of a small fine-tuning from how much there is to learn: no number has to be chosen by hand.

Each setting has its origin: what was asked for wins over the environment, and that over the profile. The numbers are those of the
LoRA jobs that the policy was made for, with clips in the place of pictures; they are meant for adapters and not for whole models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

SCHEDULER = "cosine_with_restarts"
COMPUTED = "policy"
ASKED = "asked for"
PREFIXES = ("SAT_HP_", "SB_HP_")  # of environment variables, ours first; the other is that of the first users of the policy


@dataclass(frozen=True)
class Profile:
    """What a kind of fine-tuning needs.

    variables: what stands behind the prefix in the names of its environment variables; one for each prefix.
    rates: learning rates, the first up to the first of `tiers` clips, and so on.
    steps_per_clip, least, most: train steps.
    """

    name: str
    variables: tuple[str, str]
    rates: tuple[float, ...]
    tiers: tuple[int, ...]
    steps_per_clip: float
    least: int
    most: int


PROFILES = {
    "style": Profile("style", ("STYLE", "STYLE"), (4e-4,), (), 50, 500, 2000),
    "voice": Profile("voice", ("VOICE", "ACTOR"), (4e-4, 3e-4, 2.5e-4), (10, 20), 100, 800, 3000),
}
"""A genre or texture, and the identity of a voice or an instrument, which takes more steps and smaller ones."""
ALIASES = {"custom-styles": "style", "custom-actors": "voice"}


@dataclass(frozen=True)
class Hyperparameters:
    """How to fine-tune.

    profile: its name. clips: how many there are, or fewer whole ones that have the same length together.
    origins: of each setting: `policy`, `asked for`, or the names of the environment variables that had a say.
    """

    profile: str
    clips: float
    learning_rate: float
    max_train_steps: int
    lr_scheduler: str
    warmup_steps: int
    origins: Mapping[str, str] = field(default_factory=dict)

    def passes(self, batch_size: int) -> float:
        """How often each clip is heard."""
        return self.max_train_steps * batch_size / self.clips

    def __str__(self) -> str:
        names = ("learning_rate", "max_train_steps", "lr_scheduler", "warmup_steps")
        settings = ", ".join(f"{name} {getattr(self, name)} ({self.origins[name]})" for name in names)
        return f"profile {self.profile}, {self.clips:g} clips: {settings}"


def compute_hyperparameters(
    profile: str,
    n: int,
    seconds: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    *,
    clip_seconds: float | None = None,
) -> Hyperparameters:
    """Settings for fine-tuning on `n` clips.

    Args:
        profile: one of `PROFILES`, or an alias in `ALIASES`.
        seconds: of all clips together. With `clip_seconds`, the length that the model trains on, clips that are shorter count for less.
        overrides: `learning_rate`, `max_train_steps`, `lr_scheduler`, `warmup_steps`; what is None was not asked for.
        env: in place of the environment, which is read at this call: `SAT_HP_STYLE_LR`, `_SPI` (steps per clip), `_MIN`, `_MAX`, and for
            voices `SAT_HP_VOICE_LR_T1` to `_T3`, `_T1_MAX`, `_T2_MAX`; `SB_HP_STYLE_*` and `SB_HP_ACTOR_*` where these are not set.

    Raises:
        ConfigError: no such profile or setting, no clips, or an environment variable or override that makes no sense.
    """
    chosen = _profile(profile)
    clips = _clips(n, seconds, clip_seconds)
    environment = _Environment(chosen, os.environ if env is None else env)
    rate, rate_origin = _rate(chosen, clips, environment)
    steps, steps_origin = _steps(chosen, clips, environment)
    settings = {"learning_rate": rate, "max_train_steps": steps, "lr_scheduler": SCHEDULER, "warmup_steps": 0}
    origins = dict.fromkeys(settings, COMPUTED) | {"learning_rate": rate_origin, "max_train_steps": steps_origin}
    asked = _asked(overrides or {}, settings)
    return Hyperparameters(chosen.name, clips, **{**settings, **asked}, origins=origins | dict.fromkeys(asked, ASKED))


class _Environment:
    """Variables of a profile; `number` notes which of them had a say in what it is asked for."""

    def __init__(self, profile: Profile, variables: Mapping[str, str]):
        self.names, self.variables = [prefix + name for prefix, name in zip(PREFIXES, profile.variables, strict=True)], variables

    def number(self, setting: str, default: float, said: list[str], read: Callable[[str], float] = float) -> Any:
        """The variable's value, above 0, or the default.

        Raises:
            ConfigError: it is no such number.
        """
        variable = next((name for name in (f"{stem}_{setting}" for stem in self.names) if self.variables.get(name, "").strip()), None)
        if variable is None:
            return default
        said.append(variable)
        text = self.variables[variable].strip()
        try:
            value = read(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            kind = "a whole number above 0" if read is int else "a number above 0"
            raise ConfigError([Problem((), f"{text!r} is not {kind}", f"unset it for {default:g}")], variable)
        return value


def _profile(name: str) -> Profile:
    known = {**{alias: PROFILES[meant] for alias, meant in ALIASES.items()}, **PROFILES}
    if name not in known:
        raise ConfigError([Problem((), f"unknown profile {name!r}", did_you_mean(name, [*PROFILES, *ALIASES]))], "hyperparameter policy")
    return known[name]


def _clips(n: int, seconds: float | None, clip_seconds: float | None) -> float:
    if n < 1 or (seconds is not None and seconds <= 0) or (clip_seconds is not None and clip_seconds <= 0):
        message = f"nothing to learn from: {n} clips" + (f", {seconds:g} s in all" if seconds is not None else "")
        raise ConfigError([Problem((), message, "count the clips of the training data")], "hyperparameter policy")
    return float(n) if seconds is None or clip_seconds is None else min(float(n), seconds / clip_seconds)


def _rate(profile: Profile, clips: float, env: _Environment) -> tuple[float, str]:
    said: list[str] = []
    tiers = [env.number(f"T{place}_MAX", tier, said, int) for place, tier in enumerate(profile.tiers, 1)]
    if tiers != sorted(tiers):
        raise ConfigError([Problem((), f"tiers end at {tiers} clips", "make each larger than the one before")], ", ".join(said))
    place = sum(clips > tier for tier in tiers)
    rate = env.number(f"LR_T{place + 1}" if profile.tiers else "LR", profile.rates[place], said)
    return rate, ", ".join(said) or COMPUTED


def _steps(profile: Profile, clips: float, env: _Environment) -> tuple[int, str]:
    said: list[str] = []
    each = env.number("SPI", profile.steps_per_clip, said)
    least, most = env.number("MIN", profile.least, said, int), env.number("MAX", profile.most, said, int)
    if least > most:
        raise ConfigError([Problem((), f"at least {least} steps and at most {most}", "make MIN no larger than MAX")], ", ".join(said))
    return min(max(round(clips * each), least), most), ", ".join(said) or COMPUTED


def _asked(overrides: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the overrides was asked for; raises ConfigError."""
    unknown = [name for name in overrides if name not in settings]
    asked = {name: value for name, value in overrides.items() if value is not None and name in settings}
    problems = [Problem((name,), "no such setting", did_you_mean(name, settings), on_key=True) for name in unknown]
    rules = {"learning_rate": ("a number above 0", _above(0)), "max_train_steps": ("a whole number above 0", _whole(1))}
    rules["warmup_steps"] = ("a whole number, at least 0", _whole(0))
    problems += [
        Problem((name,), f"expected {kind}", "leave it out for that of the policy", asked[name])
        for name, (kind, fits) in rules.items()
        if name in asked and not fits(asked[name])
    ]
    if problems:
        raise ConfigError(problems, "hyperparameter policy, overrides")
    return asked


def _above(low: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low < value < math.inf


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least
