"""What a page asks for, read from a model's config before its weights are: every condition that the config names, and settings.

An entry has a name, and its value is handed over under that name. Conditions are called `conditions.<id>`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.diffusion.known import Told
from stable_audio_tools.diffusion.objectives import Objective, parse_objective
from stable_audio_tools.diffusion.samplers import SAMPLERS, Option
from stable_audio_tools.models.conditioners import INPAINT_IDS, ConditionerConfig, ConditioningConfig
from stable_audio_tools.models.conditioners.audio import SourceMixConfig
from stable_audio_tools.models.conditioners.clap_audio import CLAPAudioConfig
from stable_audio_tools.models.conditioners.numeric import IntConfig, ListConfig, NumberConfig
from stable_audio_tools.models.conditioners.tokens import PhonemeConfig
from stable_audio_tools.models.config import BaseModelConfig

Kind = Literal["text", "number", "whole", "choice", "flag", "audio", "region", "json"]
Work = Literal["diffusion", "reconstruction", "language"]

CONDITION = "conditions."
OPTION = "sampler_options."
MOST_STEPS, MOST_GUIDANCE = 500, 25.0  # chosen: beyond what any sampler or model gains by
GUIDANCE_HELP = "1 is none"
MOST_SEED = 2**53 - 2**10  # a browser counts no further
MOST_CLIPS = 16  # chosen: more are a job for the command `generate`
FEW = 3  # samplers that a line names
STEPS, CFG_SCALE = 50, 3.0  # chosen: where the model's demo settings do not say
INIT_NOISE_LEVEL = 0.7  # chosen: keeps the course of the sound, changes its character


@dataclass(frozen=True)
class Entry:
    """One thing that is asked for.

    default: its value when the page opens; None: blank. low, high: the ends of its range, both included.
    wide: a text of several lines. blank: it may stay without a value. group: where on the page it stands.
    """

    name: str
    kind: Kind
    label: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str | int, ...] = ()
    help: str = ""
    group: Literal["main", "more", "guidance", "sampler", "start", "inpaint", "adapters"] = "main"
    blank: bool = False
    wide: bool = False

    def read(self, value: Any) -> Any:
        """The value as its kind; None where it is blank.

        Raises:
            ValueError: it is of another kind, or out of range.
        """
        if value is None or (isinstance(value, str) and not value.strip() and self.kind not in ("text", "choice")):
            if self.blank:
                return None
            raise ValueError("choose a file" if self.kind == "audio" else "it is blank; give a value")
        if self.kind in ("number", "whole"):
            return self._number(value)
        if self.kind == "choice" and value not in self.choices:
            raise ValueError(f"{value_text(value)} is none of {', '.join(map(str, self.choices))}")
        if self.kind == "json":
            return _json(value)
        return Path(value) if self.kind == "audio" else value

    def _number(self, value: Any) -> float | int:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError(f"expected a number, got {value_text(value)}")
        if self.kind == "whole" and number != int(number):
            raise ValueError(f"expected a whole number, got {number:g}")
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            ends = [f"at least {self.low:g}"] if self.low is not None else []
            ends += [f"at most {self.high:g}"] if self.high is not None else []
            raise ValueError(f"{number:g} is out of range: {', '.join(ends)}")
        return int(number) if self.kind == "whole" else number


@dataclass(frozen=True)
class Form:
    """All that is asked for.

    work: what a model of this kind does. facts: of the model, in words.
    """

    work: Work
    entries: tuple[Entry, ...]
    facts: str = ""
    by_name: Mapping[str, Entry] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {entry.name: entry for entry in self.entries})

    def untouched(self, name: str, value: Any) -> bool:
        """Whether an entry is there and has no value but its default."""
        return name in self.by_name and value in (None, "", self.by_name[name].default)

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values by name, each as its kind; an entry that is not among them has its default.

        Raises:
            ConfigError: all that is wrong with them, each under the label that the page shows.
        """
        problems = [
            Problem((), f"{name}: there is nothing of that name to set", did_you_mean(name, sorted(self.by_name)))
            for name in values
            if name not in self.by_name
        ]
        read = {}
        for name, entry in self.by_name.items():
            try:
                read[name] = entry.read(values.get(name, entry.default))
            except ValueError as error:
                problems.append(Problem((), f"{entry.label}: {error}"))
        if problems:
            raise ConfigError(problems)
        return read


def form_of(config: BaseModelConfig) -> Form:
    """The form of a model.

    Raises:
        ConfigError: it reads finished tensors, which no page can ask for.
    """
    if config.model_type in ("autoencoder", "diffusion_autoencoder"):
        return Form("reconstruction", tuple(_reconstruction(config)), _facts(config))
    if config.model_type == "lm":
        return Form("language", tuple(_language(config)), _facts(config))
    return Form("diffusion", tuple(_diffusion(config)), _facts(config))


def takes_inpainting(config: BaseModelConfig) -> bool:
    """Whether the model is told which audio is kept."""
    told: Told = getattr(config, "told", Told())
    return told.frames or not set(INPAINT_IDS).isdisjoint(getattr(_network(config), "input_concat_ids", ()))


def objective_of(config: BaseModelConfig) -> Objective:
    """The objective of a diffusion model."""
    return parse_objective(_network(config).diffusion_objective)


def conditioners_of(config: BaseModelConfig) -> dict[str, ConditionerConfig]:
    """The conditioners by id that the model has use for."""
    section: ConditioningConfig | None = getattr(config.model, "conditioning", None)
    if section is None:
        return {}
    routes = _network(config).routes
    return {entry.id: entry for entry in section.configs if entry.id in routes.tokens | routes.vectors}


def _network(config: BaseModelConfig) -> Any:
    body: Any = config.model
    return next((getattr(body, name) for name in ("diffusion", "lm") if hasattr(body, name)), body)


def _facts(config: BaseModelConfig) -> str:
    kinds = {
        "diffusion_cond": "text and conditions to audio",
        "diffusion_cond_inpaint": "text and conditions to audio, fills gaps",
        "diffusion_uncond": "audio without conditions",
        "autoencoder": "autoencoder",
        "diffusion_autoencoder": "autoencoder with a diffusion decoder",
        "lm": "language model of audio",
    }
    channels = {1: "mono", 2: "stereo"}.get(config.audio_channels, f"{config.audio_channels} channels")
    return f"{kinds[config.model_type]} · {config.sample_rate / 1000:g} kHz {channels} · trained on {_trained_seconds(config):.3g} s"


def _trained_seconds(config: BaseModelConfig) -> float:
    return config.sample_size / config.sample_rate


def _diffusion(config: BaseModelConfig) -> Iterator[Entry]:
    demo = _demo(config)
    objective = objective_of(config)
    conditioned = bool(conditioners_of(config))
    yield from _conditions(config)
    yield _seconds(config)
    yield Entry("steps", "whole", "Steps", demo.get("demo_steps") or STEPS, 1, MOST_STEPS, help="finer, and slower")
    if conditioned:
        scale = float(next(iter(demo.get("demo_cfg_scales") or ()), CFG_SCALE))
        yield Entry("cfg_scale", "number", "Guidance", scale, 0, max(MOST_GUIDANCE, scale), help=GUIDANCE_HELP)
    yield from _seed_and_clips()
    yield from _sampling(objective, demo.get("sampler_type"))
    if conditioned:
        yield from _guidance()
    yield Entry("init_audio", "audio", "Sound to vary", group="start", blank=True)
    yield Entry(
        "init_noise_level",
        "number",
        "How far from it",
        INIT_NOISE_LEVEL,
        0.01,
        1,
        help="near 0: almost the same; 1: nothing of it is left",
        group="start",
    )
    if takes_inpainting(config):
        yield Entry("inpaint_audio", "audio", "Sound to change in part", group="inpaint", blank=True)
        yield Entry("region", "region", "The part to make anew", group="inpaint", blank=True)


def _sampling(objective: Objective, chosen: str | None) -> Iterator[Entry]:
    default = chosen if chosen in objective.samplers else objective.default_sampler
    yield Entry("sampler", "choice", "Sampler", default, choices=objective.samplers, group="sampler")
    takers = {option: [name for name in objective.samplers if option in SAMPLERS[name].options] for option in _options(objective)}
    for name, option in _options(objective).items():
        whose = f" ({', '.join(takers[name])})" if len(takers[name]) <= FEW else ""
        kind: Kind = "whole" if option.whole else "number"
        told = f"{option.help}{whose}; blank: its default"
        yield Entry(OPTION + name, kind, name, None, option.low, option.high, help=told, group="sampler", blank=True)


def _options(objective: Objective) -> dict[str, Option]:
    """What the samplers that fit take, each by the widest range that one of them has for it."""
    found: dict[str, Option] = {}
    for sampler in objective.samplers:
        for name, option in SAMPLERS[sampler].options.items():
            known = found.get(name, option)
            found[name] = replace(option, low=min(known.low, option.low), high=max(known.high, option.high))
    return found


def _guidance() -> Iterator[Entry]:
    where = "noise level where guidance acts; 0 is clean, 1 is noise"
    yield Entry("interval_low", "number", "From", 0.0, 0, 1, help=f"lowest {where}", group="guidance")
    yield Entry("interval_high", "number", "To", 1.0, 0, 1, help=f"highest {where}", group="guidance")
    rescaling = "share of bringing the loudness back that guidance adds; blank: the model's own"
    yield Entry("scale_phi", "number", "Rescaling", None, 0, 1, help=rescaling, group="guidance", blank=True)
    yield Entry("apg_scale", "number", "Projection (APG)", 0.0, 0, 1, help="share taken off of what oversaturates", group="guidance")
    yield Entry("apg_momentum", "number", "Momentum (APG)", 0.0, -0.99, 0.99, help="of earlier steps; negative damps", group="guidance")
    yield Entry("cfg_norm_threshold", "number", "Norm threshold", 0.0, 0, help="most that guidance moves; 0: no limit", group="guidance")
    yield Entry("batch_cfg", "flag", "Both passes at once", True, help="faster, in twice the memory", group="guidance")


def _reconstruction(config: BaseModelConfig) -> Iterator[Entry]:
    yield Entry("audio", "audio", "Sound to reconstruct", help="of any length")
    if config.model_type == "diffusion_autoencoder":
        yield Entry("steps", "whole", "Steps", _demo(config).get("demo_steps") or STEPS, 1, MOST_STEPS, help="of the decoder")
    quantizers = getattr(getattr(config.model, "bottleneck", None), "num_quantizers", 0)
    if quantizers > 1:
        yield Entry("num_quantizers", "whole", "Codebooks", quantizers, 1, quantizers, help="fewer: a smaller code, a rougher sound")
    yield Entry("latent_noise", "number", "Latent noise", 0.0, 0, 100, help="its standard deviation")
    yield _seed()


def _language(config: BaseModelConfig) -> Iterator[Entry]:
    yield from _conditions(config)
    yield _seconds(config)
    if conditioners_of(config):
        yield Entry("cfg_scale", "number", "Guidance", 1.0, 0, MOST_GUIDANCE, help=GUIDANCE_HELP)
    yield from _seed_and_clips()
    yield Entry("temperature", "number", "Temperature", 1.0, 0, 10, help="0: always the likeliest token", group="sampler")
    yield Entry("top_k", "whole", "Top k", low=0, help="draw among the k likeliest tokens, 0: all; blank: 250", group="sampler", blank=True)
    yield Entry(
        "top_p",
        "number",
        "Top p",
        low=0,
        high=1,
        help="instead: draw among the likeliest that together have this probability",
        group="sampler",
        blank=True,
    )
    yield Entry("init_audio", "audio", "Sound to continue", group="start", blank=True)


def _seconds(config: BaseModelConfig) -> Entry:
    trained = _trained_seconds(config)
    return Entry("seconds", "number", "Seconds", round(trained, 3), 0.01, 3600, help=f"trained on {trained:.3g} s")


def _seed_and_clips() -> Iterator[Entry]:
    yield _seed()
    yield Entry("clips", "whole", "Clips", 1, 1, MOST_CLIPS, help="each has the next seed")


def _seed() -> Entry:
    return Entry("seed", "whole", "Seed", -1, -1, MOST_SEED, help="-1: a fresh one")


def _demo(config: BaseModelConfig) -> Mapping[str, Any]:
    return (config.training or {}).get("demo") or {}


def _conditions(config: BaseModelConfig) -> Iterator[Entry]:
    section: ConditioningConfig | None = getattr(config.model, "conditioning", None)
    finished = section.pre_encoded_keys if section else ()
    for name, conditioner in conditioners_of(config).items():
        if name in finished:
            message = f"the condition {value_text(name)} is a finished tensor (conditioning.pre_encoded_keys), which a page cannot ask for"
            raise ConfigError([Problem((), message, "use stable_audio_tools.inference.generation")])
        yield from _condition(name, conditioner)
        if name == "prompt":
            yield Entry("negative_prompt", "text", "Negative prompt", "", help="what to guide away from")


def _condition(name: str, conditioner: ConditionerConfig) -> Iterator[Entry]:
    label, key = name.replace("_", " ").capitalize(), CONDITION + name
    if name in ("seconds_start", "seconds_total"):
        meaning = "where the clip starts in a longer sound; blank: 0" if name == "seconds_start" else "blank: as long as the clip"
        kind: Kind = "whole" if isinstance(conditioner, IntConfig) else "number"
        low, high = (getattr(conditioner.config, end, None) for end in ("min_val", "max_val"))
        yield Entry(key, kind, label, low=low, high=high, help=meaning, group="more", blank=True)
    elif isinstance(conditioner, IntConfig | NumberConfig):
        low, high = conditioner.config.min_val, conditioner.config.max_val
        kind = "whole" if isinstance(conditioner, IntConfig) else "number"
        yield Entry(key, kind, label, low, low, high, help=f"{low:g} to {high:g}")
    elif isinstance(conditioner, ListConfig):
        yield Entry(key, "choice", label, conditioner.config.options[0], choices=conditioner.config.options)
    elif isinstance(conditioner, SourceMixConfig) and not conditioner.config.pre_encoded:
        for source in conditioner.config.source_keys:
            yield Entry(f"{key}.{source}", "audio", f"{label}: {source}", blank=conditioner.config.allow_null_source)
    elif isinstance(conditioner, CLAPAudioConfig) or conditioner.form == "signal":
        yield Entry(key, "audio", label)
    elif conditioner.reads == "text" or isinstance(conditioner, PhonemeConfig):
        yield Entry(key, "text", label, "", wide=True)
    elif conditioner.reads in ("a number", "a whole number"):
        yield Entry(key, "whole" if conditioner.reads == "a whole number" else "number", label)
    else:
        yield Entry(key, "json", label, help="a JSON value")


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise ValueError(f'expected a JSON value, such as 3 or "text", got {value_text(text)}') from None
