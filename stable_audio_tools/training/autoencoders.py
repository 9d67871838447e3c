"""The Lightning host of autoencoder training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ema_pytorch import EMA
from torch import Tensor

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.training.config import AutoencoderRun
from stable_audio_tools.training.demos.autoencoder import AutoencoderDemoCallback
from stable_audio_tools.training.module import TrainingModule, average_of
from stable_audio_tools.training.optim import default_optimizers
from stable_audio_tools.training.prepare import AudioBatch
from stable_audio_tools.training.strategies.adversarial import AdversarialReconstruction

__all__ = ["AutoencoderDemoCallback", "AutoencoderTrainingWrapper"]


class AutoencoderTrainingWrapper(TrainingModule):
    """Trains `autoencoder` with `AdversarialReconstruction`; the EMA is `autoencoder_ema`, upstream's key."""

    strategy: AdversarialReconstruction

    def __init__(self, config: AutoencoderRun, model: AudioAutoencoder, model_config: dict[str, Any]):
        training = config.training
        strategy = AdversarialReconstruction(
            training, sample_rate=config.sample_rate, channels=config.model.out_channels or config.model.io_channels
        )
        super().__init__(
            strategy, default_optimizers(training, *training.required_players()), model_config, clip_grad_norm=training.clip_grad_norm
        )
        self.autoencoder = model
        self.autoencoder_ema = average_of(model) if training.use_ema else None

    @property
    def model(self) -> AudioAutoencoder:
        return self.autoencoder

    @property
    def sampling_model(self) -> AudioAutoencoder:
        return self.autoencoder if self.autoencoder_ema is None else self.autoencoder_ema.ema_model

    def averages(self) -> Mapping[str, tuple[EMA, str]]:
        return {} if self.autoencoder_ema is None else {"autoencoder_ema": (self.autoencoder_ema, "autoencoder")}

    def prepare(self, batch: AudioBatch) -> Tensor:
        return batch[0]

    def reconstruct(self, model: AudioAutoencoder, audio: Tensor) -> Tensor:
        """(B, C, T) audio through `model`, which may lose some samples at the end."""
        return self.strategy.reconstruct(model, audio)[1]

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Reconstruction losses of the sampling weights."""
        audio, decoded, info = self.strategy.reconstruct(self.sampling_model, batch[0])
        terms = self.strategy.losses(audio, decoded, info, self.train_step)
        losses = {f"val/loss_{name}": term for name, term in terms.items()}
        losses["val/loss"] = torch.stack(list(losses.values())).sum()
        self.log_dict(losses, on_epoch=True, sync_dist=True, logger=False, batch_size=audio.shape[0])
