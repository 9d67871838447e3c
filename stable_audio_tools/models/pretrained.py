"""A published or an own model by name: a folder, a run, a weight file that carries its config, or a repository of the hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.configs.suggest import closest

from .checkpoints import load_into, load_weights, read_model_config
from .config import BaseModelConfig
from .factory import parse_model_config
from .weight_files import WEIGHT_SUFFIXES

CONFIG_NAME = "model_config.json"
WEIGHT_NAMES = ("model.safetensors", "model.ckpt")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class PublishedFiles(NamedTuple):
    """Where a model's parts lie; without `config`, the weights carry it."""

    weights: Path
    config: Path | None


@dataclass(frozen=True)
class FoundModel:
    """A model that is there, its weights not read yet.

    weights: their file. config: as it is written. parsed: the same, checked.
    """

    weights: Path
    config: dict[str, Any]
    parsed: BaseModelConfig

    def outline(self) -> nn.Module:
        """The model without weights, on the meta device: whatever can be asked of it before they are read."""
        with torch.device("meta"):
            return self.parsed.build().eval()

    def load(self) -> nn.Module:
        """The model with its weights, in eval mode on the CPU.

        Raises:
            CheckpointError: they are damaged, or another model's.
        """
        model = self.parsed.build()
        load_into(model, load_weights(self.weights))
        return model.eval()


def get_pretrained_model(name_or_folder: str | PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """A model with its weights, in eval mode on the CPU, and its config.

    Args:
        name_or_folder: a folder with `model_config.json` and `model.safetensors` or `model.ckpt`; a run's folder or its `exports`;
            a weight file; or the name of a hub repository ("owner/name") with those two files.

    Raises:
        ConfigError: nothing of that name, or its config or weights are bad.
    """
    found = find_model(name_or_folder)
    return found.load(), found.config


def find_model(name_or_folder: str | PathLike[str], *, model_config: str | PathLike[str] | None = None) -> FoundModel:
    """What `get_pretrained_model` would load; of the weights, no more than what they carry of a config is read.

    Args:
        model_config: a config's file, instead of the one that lies beside the weights or in them.

    Raises:
        ConfigError: nothing of that name, or its config is bad.
    """
    weights, beside = _local_files(Path(name_or_folder)) or _hub_files(str(name_or_folder))
    path = beside if model_config is None else Path(model_config)
    if path is not None:
        config, text = read_json(path)
        return FoundModel(weights, config, parse_model_config(config, str(path), text))
    config = read_model_config(weights)
    return FoundModel(weights, config, parse_model_config(config, f"config of {weights}", json.dumps(config, indent=1)))


def _local_files(path: Path) -> PublishedFiles | None:
    """The files at a path; None: there is nothing."""
    if path.is_file():
        return PublishedFiles(path, None)
    if not path.is_dir():
        return None
    found = [folder / name for folder in (path, path / "exports") for name in WEIGHT_NAMES if (folder / name).is_file()]
    if not found:
        named = f"{' or '.join(WEIGHT_NAMES)}, here or in exports/"
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ConfigError([Problem((), f"the folder has no {named}; it has {inside}", "name a model's folder, or a run")], str(path))
    config = found[0].with_name(CONFIG_NAME)
    return PublishedFiles(found[0], config if config.is_file() else None)


def _hub_files(name: str) -> PublishedFiles:
    """Download the two files of a repository, or find them in the hub's cache."""
    if near := _near_path(Path(name)):
        raise ConfigError([Problem((), "no such file or folder", f"did you mean {near}?")], name)
    if not HUB_NAME.fullmatch(name) or Path(name).suffix in WEIGHT_SUFFIXES:
        raise ConfigError(
            [Problem((), "no such file or folder, and no name of a hub repository", "check the path; hub names are owner/name")], name
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        message = "no such folder here, and fetching it from the hub needs the package huggingface_hub"
        raise ConfigError([Problem((), message, 'pip install -e ".[hub]", or name a local folder')], name) from None
    try:
        config = Path(hf_hub_download(name, CONFIG_NAME))
        try:
            return PublishedFiles(Path(hf_hub_download(name, WEIGHT_NAMES[0])), config)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            return PublishedFiles(Path(hf_hub_download(name, WEIGHT_NAMES[1])), config)
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "check the name, the network, and that you are logged in where the model asks for it"
        raise ConfigError([Problem((), f"no such folder here, and the hub does not give it: {reason}", fix)], name) from None


def _near_path(path: Path) -> Path | None:
    """What a path that is not there was most likely meant to be."""
    if not path.parent.is_dir():
        return None
    near = closest(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix in WEIGHT_SUFFIXES])
    return path.parent / near if near else None
