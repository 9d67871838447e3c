"""The Lightning hosts of diffusion models, with and without conditions; that of diffusion autoencoders has a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ema_pytorch import EMA
from torch import Tensor

from stable_audio_tools.models.inpainting import inpaint_conditions
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.models.unconditional_diffusion import UnconditionalDiffusion
from stable_audio_tools.training.conditions import ConditionPlan
from stable_audio_tools.training.config import BaseDiffusionCondRun, DiffusionUncondRun
from stable_audio_tools.training.demos.diffusion import (
    DiffusionCondDemoCallback,
    DiffusionCondInpaintDemoCallback,
    DiffusionUncondDemoCallback,
)
from stable_audio_tools.training.demos.diffusion_autoencoder import DiffusionAutoencoderDemoCallback
from stable_audio_tools.training.denoising import DenoisingModule
from stable_audio_tools.training.diffusion_autoencoder import DiffusionAutoencoderTrainingWrapper
from stable_audio_tools.training.module import average_of, with_modules
from stable_audio_tools.training.noising import Noising, NoisyBatch, velocity
from stable_audio_tools.training.prepare import AudioBatch, DiffusionModel, latent_batch, to_latents
from stable_audio_tools.training.sections import DiffusionTrainingConfig, DiffusionUncondTrainingConfig
from stable_audio_tools.training.strategies.base import LatentBatch, TrainingStrategy

__all__ = [
    "DiffusionAutoencoderDemoCallback",
    "DiffusionAutoencoderTrainingWrapper",
    "DiffusionCondDemoCallback",
    "DiffusionCondInpaintDemoCallback",
    "DiffusionCondTrainingWrapper",
    "DiffusionTrainingWrapper",
    "DiffusionUncondDemoCallback",
    "DiffusionUncondTrainingWrapper",
]


class DiffusionTrainingWrapper(DenoisingModule):
    """Trains `diffusion`: denoiser and trainable conditioners; a pretransform moves only if it has `enable_grad`.

    The EMA covers the denoiser (`diffusion_ema`, upstream's key) and, where conditioners learn, the conditioner too
    (`conditioner_ema`): averaged weights with a text encoder that ran ahead of them would fit each other badly.
    """

    def __init__(
        self,
        training: DiffusionTrainingConfig | DiffusionUncondTrainingConfig,
        model: DiffusionModel,
        strategy: TrainingStrategy,
        model_config: dict[str, Any],
    ):
        super().__init__(training, strategy, model_config)
        self.pre_encoded = training.pre_encoded
        self.diffusion = model
        self.diffusion_ema = average_of(model.model) if training.use_ema else None
        conditioner = model.conditioner if isinstance(model, ConditionedDiffusion) else None
        learns = conditioner is not None and any(p.requires_grad for p in conditioner.parameters())
        self.conditioner_ema = average_of(conditioner) if training.use_ema and learns else None  # type: ignore[arg-type]  # there is one

    @property
    def model(self) -> DiffusionModel:
        return self.diffusion

    @property
    def sampling_model(self) -> DiffusionModel:
        if self.diffusion_ema is None:
            return self.diffusion
        averaged = {"model": self.diffusion_ema.ema_model}
        if self.conditioner_ema is not None:
            averaged["conditioner"] = self.conditioner_ema.ema_model
        return with_modules(self.diffusion, **averaged)  # type: ignore[return-value]

    def averages(self) -> Mapping[str, tuple[EMA, str]]:
        named = {"diffusion_ema": self.diffusion_ema, "conditioner_ema": self.conditioner_ema}
        return {name: (average, "diffusion") for name, average in named.items() if average is not None}

    def latent_batch(self, batch: AudioBatch, model: DiffusionModel) -> LatentBatch:
        return latent_batch(batch, model, pre_encoded=self.pre_encoded)

    def velocity(self, model: DiffusionModel, noisy: NoisyBatch, batch: LatentBatch) -> Tensor:
        return velocity(model, noisy, batch)


class DiffusionUncondTrainingWrapper(DiffusionTrainingWrapper):
    """Host of `diffusion_uncond` models."""

    def __init__(self, config: DiffusionUncondRun, model: UnconditionalDiffusion, model_config: dict[str, Any]):
        training = config.training
        super().__init__(training, model, training.strategy.build(Noising(training)), model_config)  # type: ignore[attr-defined]


class DiffusionCondTrainingWrapper(DiffusionTrainingWrapper):
    """Host of `diffusion_cond` and `diffusion_cond_inpaint` models, with `training.inpainting` on masked input.

    Where no condition is ever left out, what a network has learned to put in its place stays as it is.
    """

    def __init__(self, config: BaseDiffusionCondRun, model: ConditionedDiffusion, model_config: dict[str, Any]):
        training = config.training
        if training.cfg_dropout_prob == 0:
            for parameter in model.model.null_parameters():  # without a gradient, it would stop plain DDP
                parameter.requires_grad_(False)
        super().__init__(training, model, self.build_strategy(config, model), model_config)
        self.inpaint_masks = training.inpainting.mask_kwargs if training.inpainting else None
        rate = model.sample_rate / (model.pretransform.downsampling_ratio if model.pretransform is not None else 1)
        self.plan = ConditionPlan(training.token_conditions, rate, model.model.frames_per_token) if training.conditions else None

    @staticmethod
    def build_strategy(config: BaseDiffusionCondRun, model: ConditionedDiffusion) -> TrainingStrategy:
        """What the config's `training` section asks for."""
        return config.training.strategy.build(Noising(config.training))  # type: ignore[attr-defined]

    def latent_batch(self, batch: AudioBatch, model: DiffusionModel) -> LatentBatch:
        prepared = self.with_masks(super().latent_batch(batch, model))
        if self.plan is None:
            return prepared
        encode = partial(to_latents, pretransform=model.pretransform, pre_encoded=self.pre_encoded)
        return replace(prepared, known=self.plan.draw(prepared, encode))

    def with_masks(self, prepared: LatentBatch) -> LatentBatch:
        """Also with the conditions that tell an inpainting model which frames it is given: new masks at each call."""
        if self.inpaint_masks is None:
            return prepared
        given = inpaint_conditions(prepared.latents, self.inpaint_masks.draw(prepared.mask))
        return replace(prepared, conditions={**(prepared.conditions or {}), **given})
