"""The Lightning host of autoencoder training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ema_pytorch import EMA
from torch import Tensor

from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.inference.generation import isolated_generators
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.training.autoencoder_teacher import build_teacher
from stable_audio_tools.training.config import AutoencoderRun
from stable_audio_tools.training.demos.autoencoder import AutoencoderDemoCallback
from stable_audio_tools.training.denoising import VALIDATION_SEED
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
        named = training.teacher_model
        teacher = None if named is None else build_teacher(named, training.teacher_model_ckpt, model)
        channels = config.model.out_channels or config.model.io_channels
        strategy = AdversarialReconstruction(training, sample_rate=config.sample_rate, channels=channels, teacher=teacher)
        super().__init__(
            strategy, default_optimizers(training, *training.required_players()), model_config, clip_grad_norm=training.clip_grad_norm
        )
        self.autoencoder = model
        self.autoencoder_ema = average_of(model) if training.use_ema else None
        metrics = training.eval_loss_configs
        self.evaluation = None if metrics is None else metrics.build(config.sample_rate)

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
        return self.strategy.reconstruct(model, audio).decoded

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Losses and metrics of the sampling weights; all that is random is fixed, so two validations differ by the weights alone."""
        audio, model = batch[0], self.sampling_model
        with isolated_generators(self.device, derive_seed(VALIDATION_SEED, batch_idx)):
            found = self.strategy.reconstruct(model, audio)
            terms = self.strategy.reconstruction_terms(model, audio, found, self.train_step)
        losses = {f"loss_{name}": term for name, term in terms.items()}
        losses["loss"] = torch.stack(list(losses.values())).sum()
        self.log_evaluation(losses, len(audio))
        scores = {} if self.evaluation is None else self.evaluation(found.audio, found.decoded)
        for name, score in scores.items():
            self.log_evaluation({name: score.value}, score.signals)
