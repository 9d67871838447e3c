"""From a config to the model it describes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from os import PathLike
from typing import Any, cast

from pydantic import TypeAdapter
from torch import nn

from stable_audio_tools.configs.parse import read_json, validate

from .bottlenecks import Bottleneck, BottleneckConfig
from .config import BaseModelConfig, ModelConfig
from .pretransforms import Pretransform, PretransformConfig


def create_model_from_config(config: Mapping[str, Any] | BaseModelConfig, source: str = "model config") -> nn.Module:
    """Validate `config` if it is still a mapping, then build the model it describes, with fresh weights.

    Raises:
        ConfigError: unknown keys, unknown types, values out of range, sizes that do not fit; every problem is listed at once.
    """
    return parse_model_config(config, source).build()


def create_model_from_config_path(path: str | PathLike[str]) -> nn.Module:
    """The model that a JSON file describes.

    Raises:
        ConfigError: the file cannot be read, or is not a valid config.
    """
    data, text = read_json(path)
    return parse_model_config(data, str(path), text).build()


def load_model_config(path: str | PathLike[str]) -> dict[str, Any]:
    """A model config from a JSON file, checked, as the plain dict it is written as.

    Raises:
        ConfigError: the file cannot be read, or is not a valid config.
    """
    data, text = read_json(path)
    parse_model_config(data, str(path), text)
    return data


def parse_model_config(
    config: Mapping[str, Any] | BaseModelConfig, source: str = "model config", text: str | None = None
) -> BaseModelConfig:
    """Validate a model config.

    Args:
        config: parsed JSON, or an already validated config, which is returned as it is.
        source: its file name, for messages.
        text: its text, so that messages show line and column.

    Raises:
        ConfigError: every problem at once.
    """
    return config if isinstance(config, BaseModelConfig) else cast(BaseModelConfig, validate(_adapter(), config, source, text))


def create_pretransform_from_config(config: Mapping[str, Any], sample_rate: int) -> Pretransform:
    """The pretransform that a `pretransform` section describes, for audio of `sample_rate` Hz.

    Raises:
        ConfigError: every problem at once.
    """
    return validate(PretransformConfig, config, "pretransform").build(sample_rate)


def create_bottleneck_from_config(config: Mapping[str, Any]) -> Bottleneck:
    """The bottleneck that a `bottleneck` section describes.

    Raises:
        ConfigError: every problem at once.
    """
    return validate(BottleneckConfig, config, "bottleneck").build()


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(ModelConfig)
