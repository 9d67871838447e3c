"""How clean latents become noisy training examples; shared by every strategy that denoises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.timesteps import parse_timestep_sampler
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.training.strategies.base import LatentBatch

if TYPE_CHECKING:
    from stable_audio_tools.training.config import DiffusionTrainingConfig


@dataclass(frozen=True)
class NoisyBatch:
    """Latents at a noise level.

    x_t: (B, C, T) noisy latents.
    t: (B,) noise levels in [0, 1].
    target: (B, C, T) the velocity to predict.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor


class Noising(nn.Module):
    """Draws timesteps (sampler, then the model's shift by length, then one-shot) and noise, from the global generator.

    It is a module so that the sampler's position is part of the checkpoint.
    """

    def __init__(self, config: DiffusionTrainingConfig):
        super().__init__()
        self._sampler_config = (config.timestep_sampler, config.timestep_sampler_options)
        self.start(seed=0, rank=0)
        self.cfg_dropout_prob = config.cfg_dropout_prob
        self.p_one_shot = config.p_one_shot
        self.mask_padding = config.mask_padding
        self.mask_padding_dropout = config.mask_padding_dropout
        self.log_loss_info = config.log_loss_info

    def start(self, *, seed: int, rank: int) -> None:
        """Give the sampler the sequence of this run and this rank."""
        self.sampler = parse_timestep_sampler(*self._sampler_config, seed=seed, rank=rank)

    def draw(self, model: ConditionedDiffusion, batch: LatentBatch) -> NoisyBatch:
        t = self.timesteps(model, batch)
        return noisy_at(model, batch.latents, torch.randn_like(batch.latents), t)

    def timesteps(self, model: ConditionedDiffusion, batch: LatentBatch) -> Tensor:
        """(B,) noise levels on the latents' device, float32."""
        latents = batch.latents
        t = self.sampler.sample(latents.shape[0], length=latents.shape[-1]).to(latents.device, torch.float32)
        if model.dist_shift is not None:
            t = model.dist_shift.shift(t, latents.shape[-1])
        if self.p_one_shot > 0:
            t = torch.where(torch.rand_like(t) < self.p_one_shot, torch.ones_like(t), t)
        return t

    def loss_mask(self, batch: LatentBatch) -> Tensor | None:
        """(B, 1, T) bool of the frames that count, or None for all of them."""
        if not self.mask_padding or (self.mask_padding_dropout > 0 and torch.rand(()) < self.mask_padding_dropout):
            return None
        return batch.mask[:, None, :]

    def get_extra_state(self) -> dict:
        return {"sampler": self.sampler.state_dict()}

    def set_extra_state(self, state: dict) -> None:
        self.sampler.load_state_dict(state["sampler"])


def noisy_at(model: ConditionedDiffusion, latents: Tensor, noise: Tensor, t: Tensor) -> NoisyBatch:
    """The training example of `latents` (B, C, T) with this `noise` at the levels `t` (B,)."""
    return NoisyBatch(model.objective.add_noise(latents, noise, t), t, model.objective.target(latents, noise, t))
