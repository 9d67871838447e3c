"""An Oobleck autoencoder as Hugging Face diffusers' `AutoencoderOobleck`: which models that can hold, its config and its names.

The mapping is that of diffusers' own conversion, scripts/convert_stable_audio.py. There, one width and one list of strides serve
encoder and decoder, and the encoder's output has as many channels as its first layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.autoencoders.oobleck import OobleckDecoderConfig, OobleckEncoderConfig
from stable_audio_tools.models.bottlenecks.continuous import VAEConfig
from stable_audio_tools.models.config import BaseModelConfig
from stable_audio_tools.models.factory import parse_model_config
from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransformConfig

CONFIG_NAME, WEIGHTS_NAME = "config.json", "diffusion_pytorch_model.safetensors"
CLASS_NAME = "AutoencoderOobleck"

PRETRANSFORM = "pretransform.model."
BLOCKS = {
    "encoder": ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"),
    "decoder": ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"),
}
RESIDUAL_UNIT = ("snake1", "conv1", "snake2", "conv2")

Path = tuple[str, ...]


def diffusers_config(config: BaseModelConfig, source: str) -> dict[str, Any]:
    """The `config.json` of a model's autoencoder, which is the model itself or its pretransform.

    Raises:
        ConfigError: diffusers has no such autoencoder; every reason is named.
    """
    path, body = _autoencoder(config, source)
    if problems := [*_kind_problems(body, path)] or [*_problems(body, path)]:
        raise ConfigError(problems, source)
    encoder: Any = body.encoder.config
    decoder: Any = body.decoder.config
    return {
        "_class_name": CLASS_NAME,
        "encoder_hidden_size": encoder.channels,
        "downsampling_ratios": list(encoder.strides),
        "channel_multiples": list(encoder.c_mults),
        "decoder_channels": decoder.channels,
        "decoder_input_channels": decoder.latent_dim,
        "audio_channels": body.io_channels,
        "sampling_rate": config.sample_rate,
    }


def alone(document: Mapping[str, Any]) -> BaseModelConfig:
    """The autoencoder inside of a model that `diffusers_config` accepts, as a model of its own."""
    shared = {key: document[key] for key in ("sample_rate", "sample_size", "audio_channels") if key in document}
    return parse_model_config({"model_type": "autoencoder", **shared, "model": document["model"]["pretransform"]["config"]})


def diffusers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's weights of a model that `diffusers_config` accepts, under diffusers' names."""
    inside = any(key.startswith(PRETRANSFORM) for key in state)
    own = {key.removeprefix(PRETRANSFORM): value for key, value in state.items() if not inside or key.startswith(PRETRANSFORM)}
    blocks = {half: max(int(key.split(".")[2]) for key in own if key.startswith(half)) - 2 for half in BLOCKS}
    renamed = {_name(key, blocks): value for key, value in own.items()}
    return {key: value[None, :, None] if key.endswith((".alpha", ".beta")) else value for key, value in renamed.items()}


def _name(key: str, blocks: Mapping[str, int]) -> str:
    """Such as encoder.layers.1.layers.0.layers.2.alpha -> encoder.block.0.res_unit1.snake2.alpha."""
    half, *indices, leaf = key.replace(".layers", "").split(".")
    first, rest = int(indices[0]), [int(index) for index in indices[1:]]
    outside = {0: "conv1", blocks[half] + 1: "snake1", blocks[half] + 2: "conv2"}
    if first in outside:
        return f"{half}.{outside[first]}.{leaf}"
    parts = [BLOCKS[half][rest[0]], *(RESIDUAL_UNIT[index] for index in rest[1:])]
    return ".".join([half, "block", str(first - 1), *parts, leaf])


def _autoencoder(config: BaseModelConfig, source: str) -> tuple[Path, AutoencoderBody]:
    """Where a model's autoencoder stands in its config, and what it says."""
    if type(config.model) is AutoencoderBody:
        return ("model",), config.model
    pretransform = getattr(config.model, "pretransform", None)
    if not isinstance(pretransform, AutoencoderPretransformConfig):
        what = f"the model is of type {config.model_type!r} and has no autoencoder inside; for diffusers, autoencoders are exported"
        raise ConfigError([Problem((), what, "--format native or peer")], source)
    if pretransform.scale != 1.0:
        what = f"diffusers has no scale of latents, and these are divided by {pretransform.scale}"
        raise ConfigError(
            [Problem(("model", "pretransform", "scale"), what, "export the autoencoder that the model was trained on")], source
        )
    return ("model", "pretransform", "config"), pretransform.config


def _kind_problems(body: AutoencoderBody, path: Path) -> Iterator[Problem]:
    for half, kind in (("encoder", OobleckEncoderConfig), ("decoder", OobleckDecoderConfig)):
        if not isinstance(found := getattr(body, half), kind):
            yield Problem((*path, half, "type"), f"{CLASS_NAME} has an oobleck {half}", "--format native or peer", found.type)
    if not isinstance(body.bottleneck, VAEConfig):
        has = getattr(body.bottleneck, "type", "none")
        yield Problem((*path, "bottleneck"), f"{CLASS_NAME} has a vae bottleneck, the model {has}", "--format native or peer")
    if body.pretransform is not None:
        yield Problem((*path, "pretransform"), f"{CLASS_NAME} encodes the audio itself", "--format native or peer", on_key=True)


def _problems(body: AutoencoderBody, path: Path) -> Iterator[Problem]:
    encoder: Any = body.encoder.config
    fix = "a model of this shape cannot be expressed there: --format native or peer"
    wanted = {
        ("encoder", "config", "use_snake"): True,
        ("encoder", "config", "antialias_activation"): False,
        ("encoder", "config", "latent_dim"): encoder.channels,
        ("decoder", "config", "use_snake"): True,
        ("decoder", "config", "antialias_activation"): False,
        ("decoder", "config", "use_nearest_upsample"): False,
        ("decoder", "config", "final_tanh"): False,
        ("decoder", "config", "c_mults"): encoder.c_mults,
        ("decoder", "config", "strides"): encoder.strides,
        ("decoder", "soft_clip"): False,
        ("in_channels",): body.io_channels,
        ("out_channels",): body.io_channels,
    }
    for place, value in wanted.items():
        found: Any = body
        for key in place:
            found = getattr(found, key)
        if found != value:
            shown = str(list(value) if isinstance(value, tuple) else value)
            yield Problem((*path, *place), f"{CLASS_NAME} can only have {shown} here{_reason(place)}", fix, found)


def _reason(place: Path) -> str:
    reasons = {"latent_dim": ", the encoder's channels", "c_mults": ", as the encoder", "strides": ", as the encoder"}
    return reasons.get(place[-1], "")
