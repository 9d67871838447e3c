"""Plain denoising training: pretraining, and supervised fine-tuning, which is the same loss on chosen data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.training.losses.terms import masked_mean
from stable_audio_tools.training.strategies.base import LatentBatch, LossOutput, TrainingStrategy

if TYPE_CHECKING:
    from stable_audio_tools.training.noising import Noising

LOSS_BUCKETS = 10


class SupervisedConfig(StrictModel):
    """Minimise the squared error of the predicted velocity."""

    name: Literal["supervised"] = "supervised"

    def build(self, noising: Noising) -> Supervised:
        return Supervised(noising)


class Supervised(TrainingStrategy):
    """Mean squared error between the predicted and the true velocity at random noise levels."""

    def __init__(self, noising: Noising):
        super().__init__()
        self.noising = noising

    def start(self, *, seed: int, rank: int) -> None:
        self.noising.start(seed=seed, rank=rank)

    def loss(self, model: ConditionedDiffusion, batch: LatentBatch) -> LossOutput:
        noisy = self.noising.draw(model, batch)
        output = model(noisy.x_t, noisy.t, cond=batch.conditions, cfg_dropout_prob=self.noising.cfg_dropout_prob)
        error = (output.float() - noisy.target.float()).square()  # float: the mean of a bf16 square is too coarse

        mask = self.noising.loss_mask(batch)
        per_example = masked_mean(error, mask, dim=(1, 2))
        loss = masked_mean(error, mask)
        logs = {"loss": loss.detach(), "std_data": batch.latents.detach().std()}
        if self.noising.log_loss_info:
            logs |= loss_by_noise_level(per_example.detach(), noisy.t)
        return LossOutput(loss, logs, per_example.detach())


def loss_by_noise_level(per_example: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Mean loss (scalar) in each of ten equal buckets of t that holds an example; keys `loss_t_0.0-0.1` and so on."""
    bucket = (t * LOSS_BUCKETS).long().clamp(max=LOSS_BUCKETS - 1)
    total = torch.zeros(LOSS_BUCKETS, device=t.device).index_add_(0, bucket, per_example.float())
    count = torch.bincount(bucket, minlength=LOSS_BUCKETS)
    names = [f"loss_t_{i / LOSS_BUCKETS:.1f}-{(i + 1) / LOSS_BUCKETS:.1f}" for i in range(LOSS_BUCKETS)]
    return {name: total[i] / count[i] for i, name in enumerate(names) if count[i] > 0}
