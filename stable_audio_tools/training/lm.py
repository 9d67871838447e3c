"""The Lightning host of language models over a pretransform's tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from ema_pytorch import EMA

from stable_audio_tools.models.lm import AudioLanguageModel
from stable_audio_tools.training.config import LanguageModelRun
from stable_audio_tools.training.demos.lm import AudioLanguageModelDemoCallback
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.optim import default_optimizers
from stable_audio_tools.training.prepare import AudioBatch, padding_mask, resize_mask, unpacked
from stable_audio_tools.training.strategies.next_token import NextToken, TokenBatch, cross_entropies, stored_tokens, token_loss

__all__ = ["AudioLanguageModelDemoCallback", "AudioLanguageModelTrainingWrapper"]


class AudioLanguageModelTrainingWrapper(TrainingModule):
    """Trains `model`, whose pretransform makes the tokens and is frozen; the EMA is `model_ema`, upstream's key."""

    def __init__(self, config: LanguageModelRun, model: AudioLanguageModel, model_config: dict[str, Any]):
        training = config.training
        strategy, optimizers = NextToken(training.cfg_dropout_prob), default_optimizers(training, "lm")
        super().__init__(strategy, optimizers, model_config, clip_grad_norm=training.clip_grad_norm)
        self.pre_encoded = training.pre_encoded
        self._modules["model"] = model  # the file format's name, which the host has for a property
        self.model_ema = _average_of(model) if training.use_ema else None

    @property
    def model(self) -> AudioLanguageModel:
        return self._modules["model"]  # type: ignore[return-value]

    @property
    def sampling_model(self) -> AudioLanguageModel:
        return self.model if self.model_ema is None else self.model_ema.ema_model

    def averages(self) -> Mapping[str, tuple[EMA, str]]:
        return {} if self.model_ema is None else {"model_ema": (self.model_ema, "lm")}

    def on_before_batch_transfer(self, batch: AudioBatch, dataloader_idx: int) -> AudioBatch:
        """Check stored tokens while they are on the CPU, where looking at their values does not wait for a GPU.

        Raises:
            ValueError: they are not this model's tokens.
        """
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        if not self.pre_encoded:
            return batch
        signal, metadata = unpacked(batch)
        return stored_tokens(signal, self.model), metadata

    def prepare(self, batch: AudioBatch) -> TokenBatch:
        return self._token_batch(batch, self.model)

    def _token_batch(self, batch: AudioBatch, model: AudioLanguageModel) -> TokenBatch:
        signal, metadata = unpacked(batch)
        mask = padding_mask(metadata, signal)
        with torch.no_grad():
            tokens = signal if self.pre_encoded else model.pretransform.tokenize(signal)
        conditions = model.conditioner(metadata, signal.device)
        return TokenBatch(tokens, resize_mask(mask, tokens.shape[-1]), conditions, metadata)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        super().log_metrics({**metrics, **perplexities(metrics)})

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Cross-entropy of the sampling weights, with all conditions."""
        model = self.sampling_model
        prepared = self._token_batch(batch, model)
        self.log_evaluation(cross_entropies(token_loss(model, prepared)), len(prepared.metadata))

    def on_validation_epoch_end(self) -> None:
        self._log_perplexities("val/")
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        self._log_perplexities("test/")

    def _log_perplexities(self, stage: str) -> None:
        means = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith(stage)}
        self.log_dict(perplexities(means), logger=False)


def perplexities(metrics: Mapping[str, float]) -> dict[str, float]:
    """The perplexity beside each mean cross-entropy, under the same name with `perplexity` in it."""
    found = {name: value for name, value in metrics.items() if "cross_entropy" in name}
    values = torch.tensor(list(found.values()), dtype=torch.float64).exp().tolist()
    return {name.replace("cross_entropy", "perplexity"): value for name, value in zip(found, values, strict=True)}


def _average_of(model: AudioLanguageModel) -> EMA:
    """An EMA with the constants of upstream's language models; the frozen pretransform is not stored twice."""
    averaged = copy.deepcopy(model, {id(model.pretransform): model.pretransform})
    return EMA(model, averaged, beta=0.99, update_every=10, include_online_model=False, use_foreach=True)
