"""The Lightning host of diffusion autoencoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ema_pytorch import EMA
from torch import Tensor

from stable_audio_tools.models.diffusion_autoencoder import DiffusionAutoencoder
from stable_audio_tools.training.config import DiffusionAutoencoderRun
from stable_audio_tools.training.denoising import DenoisingModule
from stable_audio_tools.training.module import average_of
from stable_audio_tools.training.noising import NoisyBatch
from stable_audio_tools.training.prepare import AudioBatch, padding_mask, resize_mask, to_latents, unpacked
from stable_audio_tools.training.strategies.autoencoded import AudioFrames, AutoencodedDenoising, denoised_beside_latents
from stable_audio_tools.training.strategies.base import LatentBatch


class DiffusionAutoencoderTrainingWrapper(DenoisingModule):
    """Trains all of `diffae`; the EMA is `diffae_ema`, upstream's key, and covers all of it too."""

    def __init__(self, config: DiffusionAutoencoderRun, model: DiffusionAutoencoder, model_config: dict[str, Any]):
        training = config.training
        super().__init__(training, AutoencodedDenoising(training, sample_rate=config.sample_rate), model_config)
        self.diffae = model
        self.diffae_ema = average_of(model) if training.use_ema else None

    @property
    def model(self) -> DiffusionAutoencoder:
        return self.diffae

    @property
    def sampling_model(self) -> DiffusionAutoencoder:
        return self.diffae if self.diffae_ema is None else self.diffae_ema.ema_model

    def averages(self) -> Mapping[str, tuple[EMA, str]]:
        return {} if self.diffae_ema is None else {"diffae_ema": (self.diffae_ema, "diffusion")}

    def latent_batch(self, batch: AudioBatch, model: DiffusionAutoencoder) -> AudioFrames:
        audio, metadata = unpacked(batch)
        frames = to_latents(audio, model.pretransform)
        return AudioFrames(frames, resize_mask(padding_mask(metadata, audio), frames.shape[-1]), None, metadata, audio)

    def velocity(self, model: DiffusionAutoencoder, noisy: NoisyBatch, batch: LatentBatch) -> Tensor:
        return denoised_beside_latents(model, batch, noisy, sample=False)[0]
