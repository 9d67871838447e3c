"""The settings beside a clip: what repeats it, as a file that `--from-settings` reads."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.configs.suggest import did_you_mean

from .acts import flag, given
from .makers import Clip
from .planning import Plan

log = logging.getLogger(__name__)

PLACES, PLACE_BYTES = 64, 4096  # chosen: training moves every weight, so a few of them tell files apart, at once for any size
FLAGS = {  # setting: flag, where the names differ
    "adapters": "adapter",
    "conditions": "cond",
    "sampler_options": "sampler_option",
}
SAME = (
    *("model", "model_config", "prompt", "negative_prompt", "seed", "seconds", "plugins"),
    *("steps", "sampler", "cfg_scale", "cfg_interval", "cfg_rescale", "apg_scale", "apg_momentum", "cfg_norm_threshold", "no_batch_cfg"),
    *(
        "init_audio",
        "init_noise_level",
        "inpaint_audio",
        "mask",
        "continue_from",
        "reference",
        "reconstruct",
        "num_quantizers",
        "latent_noise",
    ),
    *("temperature", "top_k", "top_p", "precision", "format", "bits", "normalize", "loudness"),
)
FACTS = ("weights", "sample_rate", "objective", "version", "device", "torch", "result")
"""What is told of a clip and asks for nothing."""


def settings_of(args: argparse.Namespace, plan: Plan, clip: Clip, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What repeats a clip, and facts of how it was made; None where there is nothing to say."""
    conditions = dict(clip.metadata)
    return {
        "model": args.model,
        "model_config": args.model_config,
        "plugins": args.plugins or None,
        "adapters": args.adapter or None,
        "reconstruct": clip.source,
        "prompt": conditions.pop("prompt", None),
        "conditions": conditions or None,
        "negative_prompt": None if clip.negative is None else clip.negative["prompt"],
        "seed": clip.seed,
        "seconds": None if clip.source else clip.keep / plan.rate,
        **plan.maker.settings,
        "precision": args.precision,
        "weights": plan.weights,
        "sample_rate": plan.rate,
        **facts,
    }


def fingerprint(weights: Path) -> str:
    """What tells a file of weights from others of the same name: a hash of its length and of bytes from all over it."""
    size = weights.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with weights.open("rb") as file:
        for place in range(PLACES):
            file.seek(place * max(0, size - PLACE_BYTES) // (PLACES - 1))
            digest.update(file.read(PLACE_BYTES))
    return digest.hexdigest()[:16]


def warn_of_other_weights(path: str, weights: str) -> None:
    """Say so where the settings at `path` are of a clip that other weights made."""
    before = _read(Path(path)).get("weights")
    if before not in (None, weights):
        log.warning("--from-settings %s: the weights are others than those that made the clip, so this one will differ", path)


def check_same(path: Path, settings: Mapping[str, Any], *, seeded: bool) -> None:
    """Whether the clip at `path` was made with these settings.

    Args:
        seeded: a different seed is a different setting.

    Raises:
        ConfigError: it was not, or nothing says so.
    """
    source = "--skip-existing"
    beside = path.with_suffix(".json")
    if not beside.exists():
        raise ConfigError([Problem((), f"{path} is there without its settings", "choose another --out, or remove it")], source=source)
    before = _read(beside)
    names = [key for key in (*SAME, *FLAGS, "weights") if seeded or key != "seed"]
    now = json.loads(json.dumps({key: value for key, value in settings.items() if value is not None}))
    if changed := [key for key in names if before.get(key) != now.get(key)]:
        was, wanted = (value_text(found.get(changed[0])) for found in (before, now))
        message = f"{path} is there, made with {changed[0]} {was}, and {wanted} is asked for"
        raise ConfigError([Problem((), message, "choose another --out, or remove it")], source=source)


def fill_in(args: argparse.Namespace, parse: Callable[[list[str]], argparse.Namespace]) -> argparse.Namespace:
    """The flags with what `--from-settings` says where they were not given.

    Args:
        parse: flags to values, as on the command line.

    Raises:
        ConfigError: the file cannot be read, or is not of settings.
    """
    source = f"--from-settings {args.from_settings}"
    settings = _read(Path(args.from_settings))
    names = {**{name: name for name in SAME}, **FLAGS}
    known = (*names, *FACTS)
    if unknown := [key for key in settings if key not in known]:
        raise ConfigError([Problem((), f"{key}: no such setting", did_you_mean(key, known)) for key in unknown], source=source)
    try:
        said = parse([text for key, value in settings.items() if key in names for text in _as_flags(flag(names[key]), value)])
    except ConfigError as error:
        raise ConfigError(error.problems, source=source) from None
    filled = {}
    for key in settings.keys() & names.keys():
        if not given(args, names[key]) and not _replaced(args, key, settings.get("format")):
            filled[names[key]] = getattr(said, names[key])
    return argparse.Namespace(**{**vars(args), **filled})


def _read(path: Path) -> dict[str, Any]:
    settings, text = read_json(path)
    if not isinstance(settings, dict):
        raise ConfigError([Problem((), f"expected an object, got {value_text(settings)}")], source=str(path), text=text)
    return settings


def _replaced(args: argparse.Namespace, key: str, form: str | None) -> bool:
    """Whether another flag says it instead; `form` is the format that the settings name."""
    named = Path(args.out).suffix[1:].lower()
    if key == "format":
        return bool(named)
    if key == "bits":  # another format may not have that depth
        return (named or args.format or form) != form
    others = {"prompt": "prompts_file", "top_k": "top_p", "top_p": "top_k"}
    return key in others and given(args, others[key])


def _as_flags(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield f"{name}={key}={json.dumps(entry)}"
    elif value is True:
        yield name
    else:
        for entry in value if isinstance(value, list) else [value]:
            yield f"{name}={entry}"
