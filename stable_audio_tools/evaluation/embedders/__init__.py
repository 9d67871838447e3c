"""Embedders by name. A new one is a file in this folder and a line here; a plugin calls `register_embedder`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

from .base import Embedder, TextEmbedder
from .log_mel import LogMelStatistics

__all__ = ["EMBEDDERS", "Embedder", "Request", "TextEmbedder", "build_embedder", "register_embedder"]


@dataclass(frozen=True)
class Request:
    """What an embedder is made of. path: of its weights, None where none was named. model: the one that is evaluated, if any."""

    path: str | None = None
    model: nn.Module | None = None
    device: str = "cpu"


Build = Callable[[Request], Embedder]


def _log_mel(request: Request) -> Embedder:
    if request.path is not None:
        raise _problem("log_mel", f"it has no weights, but {request.path} is named", "leave the path out")
    return LogMelStatistics()


def _latents(request: Request) -> Embedder:
    from stable_audio_tools.models.pretrained import get_pretrained_model  # with it come all models

    from .latents import LatentStatistics

    if request.path is None and request.model is None:
        raise _problem("latents", "no autoencoder is named, and there is no model to take one from", "name one: latents:FILE or FOLDER")
    model = request.model if request.path is None else get_pretrained_model(request.path)[0].to(request.device)
    assert model is not None
    embedder = LatentStatistics.of(model)
    if embedder is None:
        what = "the model has no autoencoder" if request.path is None else f"{request.path} is no autoencoder and has none"
        raise _problem("latents", what, "name an autoencoder: latents:FILE or FOLDER")
    return embedder


def _clap(request: Request) -> Embedder:
    from .clap import CLAPEmbedder

    return CLAPEmbedder(_file(request, "clap", "a checkpoint of LAION's CLAP, or a folder of one from the hub"), request.device)


def _panns(request: Request) -> Embedder:
    from .panns import PANNsEmbedder

    return PANNsEmbedder(_file(request, "panns", "the authors' Cnn14_mAP=0.431.pth"), request.device)


def _audiobox(request: Request) -> Embedder:
    from .audiobox import AudioboxAesthetics

    name = "audiobox_aesthetics"
    if find_spec(name) is None:
        raise _problem(name, f"needs the package {name}, which is not installed", "pip install audiobox-aesthetics")
    return AudioboxAesthetics(_file(request, name, "the authors' checkpoint.pt"))


def _file(request: Request, name: str, what: str) -> str:
    """The path that was named, which must be there: nothing is downloaded."""
    if request.path is None:
        raise _problem(name, "its weights are not named, and nothing is downloaded", f"name them: {name}:PATH, {what}")
    if not Path(request.path).exists():
        raise _problem(name, f"there is no {request.path}", f"give the path of {what}")
    return request.path


EMBEDDERS: dict[str, Build] = {
    "log_mel": _log_mel,
    "latents": _latents,
    "clap": _clap,
    "panns": _panns,
    "audiobox_aesthetics": _audiobox,
}


def register_embedder(name: str, build: Build) -> None:
    """Add an embedder, from a plugin.

    Raises:
        ValueError: the name is taken.
    """
    if EMBEDDERS.setdefault(name, build) is not build:
        raise ValueError(f"embedder {name!r} is already registered")


def build_embedder(spec: str, model: nn.Module | None = None, device: str = "cpu") -> Embedder:
    """The embedder that "NAME" or "NAME:PATH" asks for.

    Args:
        model: the one that is evaluated; `latents` without a path takes its autoencoder.
        device: where loaded weights go; a model's own stay where they are.

    Raises:
        ConfigError: there is no such embedder, or it lacks a package, weights or a path.
    """
    name, _, path = spec.partition(":")
    check_embedder_name(name)
    return EMBEDDERS[name](Request(path or None, model, device))


def check_embedder_name(name: str) -> None:
    """
    Raises:
        ConfigError: there is no embedder of this name.
    """
    if name not in EMBEDDERS:
        raise _problem(name, "there is no embedder of this name", did_you_mean(name, EMBEDDERS))


def _problem(name: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem((), message, fix)], source=f"embedder {name}")
