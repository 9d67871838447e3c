"""Autoencoder training: reconstruction losses, and a discriminator whose turn alternates with the autoencoder's.

Even train steps update the autoencoder, odd ones the discriminator, as in upstream. Each turn computes only what it
needs: the discriminator sees detached reconstructions, and on the autoencoder's turn the discriminator's weights get no
gradient and its features of real audio no graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.discriminators import Discriminator
from stable_audio_tools.training.strategies.base import LossOutput, TrainingStrategy, Update

if TYPE_CHECKING:
    from stable_audio_tools.training.sections import AutoencoderTrainingConfig


class AdversarialReconstruction(TrainingStrategy):
    """Encode, decode, compare.

    Args:
        config: the `training` section.
        sample_rate: Hz, for perceptual weighting and mel scales.
        channels: audio channels the losses see.
    """

    def __init__(self, config: AutoencoderTrainingConfig, *, sample_rate: int, channels: int):
        super().__init__()
        self.config = config
        self.losses = config.loss_configs.build(sample_rate, channels)
        self.discriminator = config.loss_configs.build_discriminator(sample_rate, channels)

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        found = {"autoencoder": [p for p in model.parameters() if p.requires_grad]}
        if self.discriminator is not None:
            found["discriminator"] = list(self.discriminator.parameters())
        return found

    def updates(self, model: AudioAutoencoder, batch: Tensor, step: int) -> Iterator[Update]:
        warm = step >= self.config.warmup_steps
        if self.config.encoder_freeze_on_warmup and warm:
            model.encoder.requires_grad_(False)
        discriminator = self.discriminator
        if discriminator is not None and step % 2 == 1 and (warm or self.config.warmup_mode == "adv"):
            yield Update("discriminator", self._discriminator_loss(model, batch, discriminator))
        else:
            yield Update("autoencoder", self._autoencoder_loss(model, batch, step, discriminator if warm else None))

    def _discriminator_loss(self, model: AudioAutoencoder, audio: Tensor, discriminator: Discriminator) -> LossOutput:
        with torch.no_grad():
            audio, decoded, _ = self.reconstruct(model, audio)
        loss = discriminator.discriminator_loss(audio, decoded)
        return LossOutput(loss, {"loss_discriminator": loss.detach()})

    def _autoencoder_loss(self, model: AudioAutoencoder, audio: Tensor, step: int, discriminator: Discriminator | None) -> LossOutput:
        audio, decoded, info = self.reconstruct(model, audio)
        terms = self.losses(audio, decoded, info, step)
        if discriminator is not None:
            terms |= self._adversarial_terms(audio, decoded, discriminator)
        loss = torch.stack(list(terms.values())).sum()
        logs = {"loss": loss.detach(), **{f"loss_{name}": term.detach() for name, term in terms.items()}}
        return LossOutput(loss, logs | {"latent_std": info["latents"].detach().std()})

    def _adversarial_terms(self, audio: Tensor, decoded: Tensor, discriminator: Discriminator) -> dict[str, Tensor]:
        weights = self.config.loss_configs.discriminator.weights  # type: ignore[union-attr]  # there is one
        with frozen(discriminator):
            adversarial, features = discriminator.generator_loss(audio, decoded)
        return {"adversarial": weights.adversarial * adversarial, "feature_matching": weights.feature_matching * features}

    def reconstruct(self, model: AudioAutoencoder, audio: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Audio (B, C, T) and its reconstruction, both cut to the shorter, and what the bottleneck said, with `latents`.

        A reconstruction is shorter by what exceeds whole latent frames, and by what odd strides lose at the end.
        """
        heard = audio.mean(dim=1, keepdim=True).expand(-1, model.in_channels, -1) if self.config.force_input_mono else audio
        latents, info = model.encode(heard, return_info=True)
        if self.config.latent_mask_ratio > 0 and model.training:
            keep = torch.rand_like(latents) >= self.config.latent_mask_ratio
            latents = latents * keep
        decoded = model.decode(latents)
        length = min(audio.shape[-1], decoded.shape[-1])
        return audio[..., :length], decoded[..., :length], {**info, "latents": latents}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient for the parameters of `module` inside; each parameter's own flag afterwards."""
    flags = [(p, p.requires_grad) for p in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
