"""What the hosts of every training by denoising share: validation at fixed noise levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.seeds import derive_seed, generator_for
from stable_audio_tools.inference.generation import isolated_generators
from stable_audio_tools.training.losses.denoising import weighted_mean
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.noising import NoisyBatch, frame_weights, noisy_at, squared_error
from stable_audio_tools.training.optim import default_optimizers
from stable_audio_tools.training.prepare import AudioBatch
from stable_audio_tools.training.strategies.base import LatentBatch, TrainingStrategy

if TYPE_CHECKING:
    from stable_audio_tools.training.sections import DenoisingTrainingConfig

VALIDATION_SEED = 1234


class DenoisingModule(TrainingModule):
    """Host of a model that predicts velocities; a subclass says how a batch is prepared and how the model is asked.

    Args:
        training: the `training` section.
        strategy: says what loss is taken.
        model_config: the whole run config as JSON.
    """

    def __init__(self, training: DenoisingTrainingConfig, strategy: TrainingStrategy, model_config: dict[str, Any]):
        optimizers = default_optimizers(training, *training.required_players())
        super().__init__(strategy, optimizers, model_config, clip_grad_norm=training.clip_grad_norm)
        self.validation_timesteps = training.validation_timesteps
        self.mask_padding, self.given_loss_weight = training.mask_padding, training.given_loss_weight

    def prepare(self, batch: AudioBatch) -> LatentBatch:
        return self.latent_batch(batch, self.model)

    def latent_batch(self, batch: AudioBatch, model: Any) -> LatentBatch:
        """What `model` is trained and validated on; random numbers come from the global generators."""
        raise NotImplementedError

    def velocity(self, model: Any, noisy: NoisyBatch, batch: LatentBatch) -> Tensor:
        """What `model` says of `noisy` (B, C, T), with everything that `batch` tells it."""
        raise NotImplementedError

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Squared error of the sampling weights at fixed timesteps, over the frames that count in training, neither weighted nor scaled.

        All that is random is fixed, so two validations differ by the model's weights alone.
        """
        model = self.sampling_model
        with isolated_generators(self.device, derive_seed(VALIDATION_SEED, batch_idx)):
            prepared = self.latent_batch(batch, model)
            noise = torch.randn(prepared.latents.shape, generator=generator_for(VALIDATION_SEED, batch_idx)).to(prepared.latents)
            losses = {f"loss_t_{t:g}": self._loss_at(model, prepared, noise, t) for t in self.validation_timesteps}
        losses["loss"] = torch.stack(list(losses.values())).mean()
        self.log_evaluation(losses, len(prepared.latents))

    def _loss_at(self, model: Any, batch: LatentBatch, noise: Tensor, level: float) -> Tensor:
        noisy = noisy_at(model, batch.latents, noise, torch.full_like(batch.latents[:, 0, 0], level))
        error = squared_error(self.velocity(model, noisy, batch), noisy)
        return weighted_mean(error, frame_weights(batch, batch.mask if self.mask_padding else None, self.given_loss_weight))
