"""The options of `train`: every key of `defaults.ini` is a flag of the same name, its comment is the flag's help.

Precedence: command line, then `--config-file`, then `defaults.ini`. The type of an option is the type of its default.
"""

from __future__ import annotations

import argparse
import configparser
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

SECTION = "DEFAULTS"
QUICKSTART = Path("model_configs") / "quickstart" / "train.ini"

CHOICES = {
    "logger": ("auto", "wandb", "tensorboard", "csv", "comet", "none"),
    "precision": ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
    "remove_pretransform_weight_norm": ("", "pre_load", "post_load"),
    "monitor_mode": ("", "min", "max"),
    "matmul_precision": ("highest", "high", "medium"),
    "profiler": ("none", "simple", "advanced", "pytorch"),
}
LEAST = {
    "max_steps": 0, "max_epochs": 0, "max_minutes": 0, "max_stall_minutes": 0, "batch_size": 1, "num_workers": 0, "seed": 0,
    "accum_batches": 1, "gradient_clip_val": 0, "max_bad_steps": 0, "val_every": 0, "checkpoint_every": 0, "save_top_k": -1,
    "log_every": 1, "num_nodes": 1,
    "save_best": 0, "early_stopping_patience": 0, "early_stopping_min_delta": 0,
}  # fmt: skip
FILES = ("model_config", "dataset_config", "val_dataset_config", "ckpt_path", "pretrained_ckpt_path", "pretransform_ckpt_path")
"""Options that name a file; in an INI file they are relative to that file."""
AUTO = ("batch_size",)
"""Numbers that may be `auto`, which is known later."""
SEVERAL = ("pretrained_ckpt_path",)
"""Options that may be given several times; in an INI file, one value a line."""


@dataclass(frozen=True)
class Option:
    """One key of `defaults.ini`."""

    name: str
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, text: str) -> Any:
        """The value that `text` means, of the default's type and within its range.

        Raises:
            ValueError: says what was expected.
        """
        if self.name in SEVERAL:
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        if self.name in AUTO and text == "auto":
            return text
        value = _typed(text, self.default, " or auto" if self.name in AUTO else "")
        if self.name in CHOICES and value not in CHOICES[self.name]:
            raise ValueError(f"expected one of {', '.join(c for c in CHOICES[self.name] if c)}, got {text!r}")
        if self.name in LEAST and value < LEAST[self.name]:
            raise ValueError(f"expected {LEAST[self.name]} or more, got {text}")
        return value


def project_file(relative: Path | str) -> Path:
    """A file that stands beside the package: in a clone at its top, else where the wheel put it.

    Raises:
        ConfigError: it is in neither place.
    """
    places = [Path(__file__).resolve().parents[2] / relative, Path(sys.prefix) / "share" / "stable_audio_tools" / relative]
    for place in places:
        if place.exists():
            return place
    raise ConfigError("not found; it belongs to this program: reinstall it", source=str(places[0]))


def read_options(path: Path | None = None) -> tuple[Option, ...]:
    """The options of a `defaults.ini`, in its order."""
    path = path or project_file("defaults.ini")
    comments: list[str] = []
    options = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comments.append(line.lstrip("# ").strip())
        elif "=" in line:
            name, _, text = (part.strip() for part in line.partition("="))
            options.append(Option(name, () if name in SEVERAL else _literal(text), " ".join(comments)))
            comments = []
    return tuple(options)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option; values are typed later, together with those of the INI files."""
    for option in read_options():
        shown = f"{option.help} (default: {_shown(option.default)})".replace("%", "%%")
        more: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(option.default, bool) else {}
        more |= {"action": "append"} if option.name in SEVERAL else {}
        parser.add_argument(option.flag, dest=option.name, default=None, help=shown, metavar=_metavar(option), **more)


def resolve(given: argparse.Namespace) -> dict[str, Any]:
    """The value of every option.

    Args:
        given: the parsed command line; an option that was not given is None.

    Raises:
        ConfigError: every bad value at once.
    """
    options = {option.name: option for option in read_options()}
    typed = {name: getattr(given, name) for name in options if getattr(given, name) is not None}
    texts = {name: ("\n".join(text) if name in SEVERAL else text, options[name].flag) for name, text in typed.items()}
    config_file = _config_file(given)
    if config_file is not None:
        texts = _from_ini(config_file, options) | texts
    values = {name: option.default for name, option in options.items()}
    problems = []
    for name, (text, where) in texts.items():
        try:
            values[name] = options[name].parse(text)
        except ValueError as error:
            problems.append(Problem((), f"{where}: {error}"))
    if problems:
        raise ConfigError(problems)
    return values


def _config_file(given: argparse.Namespace) -> Path | None:
    if given.config_file is not None:
        return Path(given.config_file)
    return project_file(QUICKSTART) if given.model_config is None else None


def _from_ini(path: Path, options: dict[str, Option]) -> dict[str, tuple[str, str]]:
    """Name to (text, where it stands) of an INI file with the keys of `defaults.ini`."""
    parser = configparser.ConfigParser(interpolation=None, default_section=SECTION)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ConfigError(f"cannot be read: {reason}", source=str(path)) from None
    unknown = [name for name in parser.defaults() if name not in options]
    if unknown:
        raise ConfigError([Problem((), f"unknown option {name!r}", did_you_mean(name, options)) for name in unknown], source=str(path))
    found = {name: (text, f"{path}: {name}") for name, text in parser.defaults().items()}
    for name in FILES:
        if name in found and found[name][0]:
            files = [str(path.parent / line.strip()) for line in found[name][0].splitlines() if line.strip()]
            found[name] = ("\n".join(files), found[name][1])
    return found


def _literal(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def _typed(text: str, like: Any, otherwise: str = "") -> Any:
    match like:
        case bool():
            if text.lower() not in ("true", "false"):
                raise ValueError(f"expected true or false, got {text!r}")
            return text.lower() == "true"
        case int():
            try:
                return int(text)
            except ValueError:
                raise ValueError(f"expected a whole number{otherwise}, got {text!r}") from None
        case float():
            return _number(text)
    return text


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"expected a number, got {text!r}")
    return value


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default) if default not in ("", ()) else "none"


def _metavar(option: Option) -> str:
    if option.name in CHOICES:
        return "{" + ",".join(c for c in CHOICES[option.name] if c) + "}"
    kinds = {bool: "true|false", int: "N", float: "X"}
    return kinds.get(type(option.default), "FILE" if option.name in FILES or option.name == "config_file" else "TEXT")
