"""The Lightning host of latent diffusion; wrappers for the kinds of diffusion differ in name only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ema_pytorch import EMA
from torch import Tensor

from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.training.config import DiffusionCondRun
from stable_audio_tools.training.demos.diffusion import DiffusionCondDemoCallback
from stable_audio_tools.training.module import TrainingModule, average_of, with_modules
from stable_audio_tools.training.noising import Noising, noisy_at
from stable_audio_tools.training.optim import default_optimizers
from stable_audio_tools.training.prepare import AudioBatch, latent_batch
from stable_audio_tools.training.strategies.base import LatentBatch

VALIDATION_SEED = 1234

__all__ = ["DiffusionCondDemoCallback", "DiffusionCondTrainingWrapper"]


class DiffusionTrainingWrapper(TrainingModule):
    """Trains `diffusion`: denoiser and trainable conditioners; a pretransform moves only if it has `enable_grad`.

    The EMA covers the denoiser (`diffusion_ema`, the peer's key) and, where conditioners learn, the conditioner too
    (`conditioner_ema`): averaged weights with a text encoder that ran ahead of them would fit each other badly.
    """

    def __init__(self, config: DiffusionCondRun, model: ConditionedDiffusion, model_config: dict[str, Any]):
        training = config.training
        strategy = training.strategy.build(Noising(training))  # type: ignore[attr-defined]
        optimizers = default_optimizers(training, "diffusion")
        super().__init__(strategy, optimizers, model_config, clip_grad_norm=training.clip_grad_norm)
        self.pre_encoded = training.pre_encoded
        self.validation_timesteps = training.validation_timesteps
        self.diffusion = model
        self.diffusion_ema = average_of(model.model) if training.use_ema else None
        learns = any(p.requires_grad for p in model.conditioner.parameters())
        self.conditioner_ema = average_of(model.conditioner) if training.use_ema and learns else None

    @property
    def model(self) -> ConditionedDiffusion:
        return self.diffusion

    @property
    def sampling_model(self) -> ConditionedDiffusion:
        if self.diffusion_ema is None:
            return self.diffusion
        averaged = {"model": self.diffusion_ema.ema_model}
        if self.conditioner_ema is not None:
            averaged["conditioner"] = self.conditioner_ema.ema_model
        return with_modules(self.diffusion, **averaged)  # type: ignore[return-value]

    def averages(self) -> Mapping[str, tuple[EMA, str]]:
        named = {"diffusion_ema": self.diffusion_ema, "conditioner_ema": self.conditioner_ema}
        return {name: (average, "diffusion") for name, average in named.items() if average is not None}

    def prepare(self, batch: AudioBatch) -> LatentBatch:
        return latent_batch(batch, self.diffusion, pre_encoded=self.pre_encoded)

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Loss of the sampling weights at fixed timesteps and fixed noise, so that two validations differ by the weights alone."""
        model = self.sampling_model
        prepared = latent_batch(batch, model, pre_encoded=self.pre_encoded)
        generator = torch.Generator().manual_seed(VALIDATION_SEED + batch_idx)
        noise = torch.randn(prepared.latents.shape, generator=generator).to(prepared.latents)
        losses = {f"val/loss_t_{t:g}": self._loss_at(model, prepared, noise, t) for t in self.validation_timesteps}
        losses["val/loss"] = torch.stack(list(losses.values())).mean()
        self.log_dict(losses, on_epoch=True, sync_dist=True, logger=False, batch_size=len(prepared.metadata))

    @staticmethod
    def _loss_at(model: ConditionedDiffusion, batch: LatentBatch, noise: Tensor, level: float) -> Tensor:
        noisy = noisy_at(model, batch.latents, noise, torch.full_like(batch.latents[:, 0, 0], level))
        output = model(noisy.x_t, noisy.t, cond=batch.conditions)
        return (output.float() - noisy.target.float()).square().mean()


class DiffusionCondTrainingWrapper(DiffusionTrainingWrapper):
    """Host of `diffusion_cond` and `diffusion_cond_inpaint` models."""
