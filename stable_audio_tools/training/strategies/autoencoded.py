"""Training of diffusion autoencoders: denoise audio beside its own latents, which the same loss teaches the encoder to make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stable_audio_tools.models.diffusion_autoencoder import DiffusionAutoencoder
from stable_audio_tools.nn.reconstruction import MultiResolutionSTFT
from stable_audio_tools.training.losses.terms import bottleneck_terms
from stable_audio_tools.training.noising import Noising, NoisyBatch
from stable_audio_tools.training.strategies.base import LatentBatch, LossOutput, TrainingStrategy, Update

if TYPE_CHECKING:
    from stable_audio_tools.training.sections import DiffusionAutoencoderTrainingConfig


@dataclass(frozen=True)
class AudioFrames(LatentBatch):
    """A batch whose `latents` are the frames that the network makes: audio, or the pretransform's.

    audio: (B, C, samples) that they come from.
    """

    audio: Tensor


class AutoencodedDenoising(TrainingStrategy):
    """The denoising loss, what the bottleneck adds, and, if asked for, the spectral distance of the audio that a prediction implies.

    Args:
        config: the `training` section.
        sample_rate: Hz, for perceptual weighting.
    """

    def __init__(self, config: DiffusionAutoencoderTrainingConfig, *, sample_rate: int):
        super().__init__()
        self.noising = Noising(config)
        self.bottleneck_weights = config.loss_configs.bottleneck_weights
        self.stft: MultiResolutionSTFT | None = None
        if config.use_reconstruction_loss:
            self.stft, self.stft_term = config.loss_configs.build_spectral(sample_rate)

    def start(self, *, seed: int, rank: int) -> None:
        self.noising.start(seed=seed, rank=rank)

    def updates(self, model: DiffusionAutoencoder, batch: AudioFrames, step: int) -> Iterator[Update]:
        noisy = self.noising.draw(model, batch)
        output, info = denoised_beside_latents(model, batch, noisy)
        denoising = self.noising.denoising_loss(output, noisy, batch)
        terms = bottleneck_terms(info, self.bottleneck_weights)
        if self.stft is not None:
            terms["mrstft"] = self.stft_term(self._distance(self.stft, model, batch, noisy, output), step)
        loss = torch.stack([denoising.loss, *terms.values()]).sum()
        logs = {"loss": loss.detach(), "loss_mse": denoising.loss.detach(), "latent_std": info["latents"].detach().std()}
        logs |= {f"loss_{name}": term.detach() for name, term in terms.items()}
        yield Update("diffusion", LossOutput(loss, {**denoising.logs, **logs}, denoising.per_example))

    def _distance(
        self, stft: MultiResolutionSTFT, model: DiffusionAutoencoder, batch: AudioFrames, noisy: NoisyBatch, output: Tensor
    ) -> Tensor:
        """Between the audio and what a prediction says it is, as far as the pretransform gives it back; sum and difference of stereo."""
        audio = model.objective.denoised(noisy.x_t, output, noisy.t)
        if model.pretransform is not None:
            audio = model.pretransform.decode(audio)
        length = min(audio.shape[-1], batch.audio.shape[-1])
        return stft(batch.audio[..., :length], audio[..., :length])["mrstft"]


def denoised_beside_latents(
    model: DiffusionAutoencoder, batch: LatentBatch, noisy: NoisyBatch, *, sample: bool = True
) -> tuple[Tensor, dict[str, Any]]:
    """The velocity (B, C, T) that the network predicts for `noisy` when it sees the latents of `batch`.

    Args:
        sample: False for a variational bottleneck's mean.

    Returns:
        also what the bottleneck reports, with `latents`.
    """
    latents, info = model.encode(batch.latents, return_info=True, skip_pretransform=True, sample=sample)
    seen = latents if model.bottleneck is None else model.bottleneck.decode(latents)
    return model(noisy.x_t, noisy.t, seen), {**info, "latents": latents}
