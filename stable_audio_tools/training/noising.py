"""How clean latents become noisy training examples; shared by every strategy that denoises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.objectives import Objective, expand
from stable_audio_tools.diffusion.timesteps import DistributionShift, parse_timestep_sampler
from stable_audio_tools.models.conditioners import INPAINT_IDS
from stable_audio_tools.training.coupling import nearest_noise
from stable_audio_tools.training.losses.denoising import min_snr_weight, target_variance, weighted_mean
from stable_audio_tools.training.losses.terms import mean_over_ranks
from stable_audio_tools.training.meter import Counted
from stable_audio_tools.training.strategies.base import LatentBatch, LossOutput

if TYPE_CHECKING:
    from stable_audio_tools.training.sections import DenoisingTrainingConfig

LOSS_BUCKETS = 10


class Noisable(Protocol):
    """What noising asks of a model: its noise path, and its shift of timesteps by length, if any."""

    objective: Objective
    dist_shift: DistributionShift | None


@dataclass(frozen=True)
class NoisyBatch:
    """Latents at a noise level.

    x_t: (B, C, T) noisy latents.
    t: (B,) noise levels in [0, 1].
    target: (B, C, T) the velocity to predict.
    weight: (B,) how much each example counts; None: all the same.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor | None = None


class Noising(nn.Module):
    """Draws timesteps (sampler, then the model's shift by length, then one-shot) and noise, from the global generator.

    It is a module so that the sampler's position is part of the checkpoint.
    """

    def __init__(self, config: DenoisingTrainingConfig):
        super().__init__()
        self._sampler_config = (config.timestep_sampler, config.timestep_sampler_options)
        self.start(seed=0, rank=0)
        self.cfg_dropout_prob = config.condition_dropout
        self.p_one_shot = config.p_one_shot
        self.mask_padding = config.mask_padding
        self.mask_padding_dropout = config.mask_padding_dropout
        self.given_loss_weight = config.given_loss_weight
        self.ot_coupling, self.min_snr_gamma = config.ot_coupling, config.min_snr_gamma
        self.loss_normalization, self.loss_norm_eps = config.loss_normalization, config.loss_norm_eps
        self.log_loss_info = config.log_loss_info

    def start(self, *, seed: int, rank: int) -> None:
        """Give the sampler the sequence of this run and this rank."""
        self.sampler = parse_timestep_sampler(*self._sampler_config, seed=seed, rank=rank)

    def draw(self, model: Noisable, batch: LatentBatch) -> NoisyBatch:
        t = self.timesteps(model, batch)
        noise = torch.randn_like(batch.latents)
        noisy = noisy_at(model, batch.latents, nearest_noise(batch.latents, noise) if self.ot_coupling else noise, t)
        if self.min_snr_gamma is None:
            return noisy
        return replace(noisy, weight=min_snr_weight(*model.objective.alpha_sigma(t), self.min_snr_gamma))

    def timesteps(self, model: Noisable, batch: LatentBatch) -> Tensor:
        """(B,) noise levels on the latents' device, float32."""
        latents = batch.latents
        t = self.sampler.sample(latents.shape[0], length=latents.shape[-1]).to(latents.device, torch.float32)
        if model.dist_shift is not None:
            t = model.dist_shift.shift(t, latents.shape[-1])
        if self.p_one_shot > 0:
            t = torch.where(torch.rand_like(t) < self.p_one_shot, torch.ones_like(t), t)
        return t

    def frame_weights(self, batch: LatentBatch) -> Tensor | None:
        """`frame_weights` of a training step, on which padding may count after all."""
        if not self.mask_padding:
            return frame_weights(batch, None, self.given_loss_weight)
        real = batch.mask
        if self.mask_padding_dropout > 0:
            real = real | (torch.rand(()) < self.mask_padding_dropout).to(real.device)
        return frame_weights(batch, real, self.given_loss_weight)

    def velocity(self, model: nn.Module, noisy: NoisyBatch, batch: LatentBatch) -> Tensor:
        """What the model says in training, where some items lose their conditions."""
        return velocity(model, noisy, batch, cfg_dropout_prob=self.cfg_dropout_prob)

    def denoising_loss(self, output: Tensor, noisy: NoisyBatch, batch: LatentBatch) -> LossOutput:
        """Mean squared error (scalar) of an output (B, C, T) where the loss is to look, weighted and scaled as it says, with its logs.

        All counting values of a batch weigh the same; where errors are scaled, or frames known, all examples do, however much counts.
        """
        frames, error = self.frame_weights(batch), squared_error(output, noisy)
        plain = weighted_mean(error.detach(), frames)
        evenly = self.loss_normalization != "none" or batch.known is not None
        if self.loss_normalization != "none":
            error = error / target_variance(noisy.target, frames, self.loss_normalization, self.loss_norm_eps)
        if noisy.weight is not None:
            error = expand(noisy.weight, error) * error
        per_example = weighted_mean(error, frames, dim=(1, 2))
        loss = per_example.mean() if evenly else weighted_mean(error, frames) * share_of_ranks(frames)
        logs: dict[str, Tensor | Counted] = {"loss": loss.detach(), "std_data": batch.latents.detach().std()}
        if self.loss_normalization != "none" or noisy.weight is not None:
            logs["mse"] = plain
        if self.log_loss_info:
            logs |= loss_by_noise_level(per_example.detach(), noisy.t)
        return LossOutput(loss, logs, per_example.detach())

    def get_extra_state(self) -> dict:
        return {"sampler": self.sampler.state_dict()}

    def set_extra_state(self, state: dict) -> None:
        self.sampler.load_state_dict(state["sampler"])


def noisy_at(model: Noisable, latents: Tensor, noise: Tensor, t: Tensor) -> NoisyBatch:
    """The training example of `latents` (B, C, T) with this `noise` at the levels `t` (B,)."""
    return NoisyBatch(model.objective.add_noise(latents, noise, t), t, model.objective.target(latents, noise, t))


def velocity(model: Any, noisy: NoisyBatch, batch: LatentBatch, *, cfg_dropout_prob: float = 0.0) -> Tensor:
    """What a diffusion model says of `noisy` (B, C, T); one that has conditions is told those of `batch`."""
    if batch.conditions is None:
        return model(noisy.x_t, noisy.t)
    return model(noisy.x_t, noisy.t, cond=batch.conditions, known=batch.known, cfg_dropout_prob=cfg_dropout_prob)


def frame_weights(batch: LatentBatch, real: Tensor | None, given_weight: float) -> Tensor | None:
    """(B, 1, T) float32, how much each frame counts in a loss, or None: all the same.

    Args:
        real: (B, T) bool, the frames that are not to be left out as padding; None: none is left out.
        given_weight: of the frames that an inpainting model is given.
    """
    weights = None if real is None else real[:, None].float()
    if given_weight != 1 and batch.conditions is not None:
        made = 1 - (1 - given_weight) * batch.conditions[INPAINT_IDS[0]].tensor.float()
        weights = made if weights is None else weights * made
    if batch.known is not None:
        made = (~batch.known.keep)[:, None].float()
        weights = made if weights is None else weights * made
    return weights


def share_of_ranks(frames: Tensor | None) -> Tensor | float:
    """How much this process has of what counts, where 1 is the mean of all processes; by it, a mean over padded items counts."""
    if frames is None:
        return 1.0
    everywhere = mean_over_ranks(frames.sum())
    return frames.sum() / everywhere.where(everywhere > 0, 1)


def squared_error(output: Tensor, noisy: NoisyBatch) -> Tensor:
    """(B, C, T) float32."""
    return (output.float() - noisy.target.float()).square()  # float: the mean of a bf16 square is too coarse


def loss_by_noise_level(per_example: Tensor, t: Tensor) -> dict[str, Counted]:
    """The loss in each of ten equal buckets of t, whether it holds an example or not; keys `loss_t_0.0-0.1` and so on."""
    bucket = (t * LOSS_BUCKETS).long().clamp(max=LOSS_BUCKETS - 1)
    zeros = torch.zeros(LOSS_BUCKETS, device=t.device)
    total, count = zeros.index_add(0, bucket, per_example.float()), zeros.index_add(0, bucket, torch.ones_like(per_example.float()))
    return {f"loss_t_{i / LOSS_BUCKETS:.1f}-{(i + 1) / LOSS_BUCKETS:.1f}": Counted(total[i], count[i]) for i in range(LOSS_BUCKETS)}
