"""From a config to its training wrapper and its demo callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stable_audio_tools.training.arc import ARCTrainingWrapper
from stable_audio_tools.training.autoencoders import AutoencoderDemoCallback, AutoencoderTrainingWrapper
from stable_audio_tools.training.config import (
    AnyRun,
    AutoencoderRun,
    BaseDiffusionCondRun,
    DiffusionAutoencoderRun,
    DiffusionUncondRun,
    LanguageModelRun,
    parse_run_config,
)
from stable_audio_tools.training.demos.base import DemoCallback
from stable_audio_tools.training.demos.known import DiffusionCondKnownDemoCallback
from stable_audio_tools.training.diffusion import (
    DiffusionAutoencoderDemoCallback,
    DiffusionAutoencoderTrainingWrapper,
    DiffusionCondDemoCallback,
    DiffusionCondInpaintDemoCallback,
    DiffusionCondTrainingWrapper,
    DiffusionUncondDemoCallback,
    DiffusionUncondTrainingWrapper,
)
from stable_audio_tools.training.lm import AudioLanguageModelDemoCallback, AudioLanguageModelTrainingWrapper
from stable_audio_tools.training.module import TrainingModule


def create_training_wrapper_from_config(model_config: Mapping[str, Any] | AnyRun, model: nn.Module) -> TrainingModule:
    """The LightningModule that trains `model` as the config's `training` section says.

    Raises:
        ConfigError: the config is not valid.
    """
    config = parse_run_config(model_config)
    document = dict(model_config) if isinstance(model_config, Mapping) else config.model_dump(mode="json", exclude_unset=True)
    match config:
        case AutoencoderRun():
            return AutoencoderTrainingWrapper(config, model, document)  # type: ignore[arg-type]
        case DiffusionUncondRun():
            return DiffusionUncondTrainingWrapper(config, model, document)  # type: ignore[arg-type]
        case BaseDiffusionCondRun() if config.training.arc is not None:
            return ARCTrainingWrapper(config, model, document)  # type: ignore[arg-type]
        case BaseDiffusionCondRun():
            return DiffusionCondTrainingWrapper(config, model, document)  # type: ignore[arg-type]
        case DiffusionAutoencoderRun():
            return DiffusionAutoencoderTrainingWrapper(config, model, document)  # type: ignore[arg-type]
        case LanguageModelRun():
            return AudioLanguageModelTrainingWrapper(config, model, document)  # type: ignore[arg-type]


def create_demo_callback_from_config(model_config: Mapping[str, Any] | AnyRun, demo_dl: Any = None, **kwargs: Any) -> DemoCallback:
    """The demo callback of the config's model type.

    Args:
        demo_dl: batches that demos may take clips or metadata from.
        kwargs: `folder`, where demos are written.

    Raises:
        ConfigError: the config is not valid.
    """
    config = parse_run_config(model_config)
    kwargs |= {"batches": demo_dl, "sample_rate": config.sample_rate}
    match config:
        case AutoencoderRun():
            return AutoencoderDemoCallback(config.training.demo, **kwargs)
        case DiffusionUncondRun():
            return DiffusionUncondDemoCallback(config.training.demo, sample_size=config.sample_size, **kwargs)
        case BaseDiffusionCondRun() if config.training.inpainting is not None:
            masks = config.training.inpainting.mask_kwargs
            return DiffusionCondInpaintDemoCallback(config.training.demo, masks, sample_size=config.sample_size, **kwargs)
        case BaseDiffusionCondRun() if config.training.conditions:
            return DiffusionCondKnownDemoCallback(config.training.demo, sample_size=config.sample_size, **kwargs)
        case BaseDiffusionCondRun():
            return DiffusionCondDemoCallback(config.training.demo, sample_size=config.sample_size, **kwargs)
        case DiffusionAutoencoderRun():
            return DiffusionAutoencoderDemoCallback(config.training.demo, **kwargs)
        case LanguageModelRun():
            return AudioLanguageModelDemoCallback(config.training.demo, num_frames=config.demo_frames, **kwargs)
