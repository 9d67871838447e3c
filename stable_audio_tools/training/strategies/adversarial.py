"""Autoencoder training: reconstruction losses, and a discriminator whose turn alternates with the autoencoder's.

Even train steps update the autoencoder, odd ones the discriminator, as in upstream. Each turn computes only what it
needs: the discriminator sees detached reconstructions, and on the autoencoder's turn the discriminator's weights get no
gradient and its features of real audio no graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stable_audio_tools.inference.generation import evaluation_mode
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.discriminators import Discriminator
from stable_audio_tools.training.strategies.base import LossOutput, TrainingStrategy, Update
from stable_audio_tools.training.strategies.distillation import Distillation

if TYPE_CHECKING:
    from stable_audio_tools.training.sections import AutoencoderTrainingConfig


@dataclass(frozen=True)
class Reconstruction:
    """What became of some audio.

    audio: (B, C, T) the original, and `decoded`, its reconstruction; both cut to the shorter. A reconstruction is shorter by what
    exceeds whole latent frames, and by what odd strides lose at the end.
    latents: (B, D, T') as they were encoded.
    kept: (B, D, T') as they were decoded; some are zero where training masks latents.
    info: what the bottleneck said.
    """

    audio: Tensor
    decoded: Tensor
    latents: Tensor
    kept: Tensor
    info: dict[str, Any]


class AdversarialReconstruction(TrainingStrategy):
    """Encode, decode, compare.

    Args:
        config: the `training` section.
        sample_rate: Hz, for perceptual weighting and mel scales.
        channels: audio channels the losses see.
        teacher: an autoencoder whose latents and sound are learnt too.
    """

    def __init__(self, config: AutoencoderTrainingConfig, *, sample_rate: int, channels: int, teacher: AudioAutoencoder | None = None):
        super().__init__()
        self.config = config
        self.losses = config.loss_configs.build(sample_rate, channels, distills=teacher is not None)
        self.discriminator = config.loss_configs.build_discriminator(sample_rate, channels)
        self.distillation = None if teacher is None else Distillation(config.loss_configs, teacher, sample_rate)

    def start(self, *, seed: int, rank: int) -> None:
        self.losses.load()

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        found = {"autoencoder": [p for p in model.parameters() if p.requires_grad]}
        if self.discriminator is not None:
            found["discriminator"] = list(self.discriminator.parameters())
        return found

    def updates(self, model: AudioAutoencoder, batch: Tensor, step: int) -> Iterator[Update]:
        warm = step >= self.config.warmup_steps
        frozen = warm and self.config.encoder_freeze_on_warmup
        discriminator = self.discriminator
        if discriminator is not None and step % 2 == 1 and (warm or self.config.warmup_mode == "adv"):
            with torch.no_grad():
                found = self.reconstruct(model, batch, frozen=frozen)
            yield Update("discriminator", _discriminator_loss(found, discriminator))
        else:
            found = self.reconstruct(model, batch, frozen=frozen)
            terms = self.reconstruction_terms(model, batch, found, step)
            if discriminator is not None and warm:
                terms |= self._adversarial_terms(found, discriminator)
            yield Update("autoencoder", _summed(terms, found))

    def reconstruction_terms(self, model: AudioAutoencoder, audio: Tensor, found: Reconstruction, step: int) -> dict[str, Tensor]:
        """The weighted terms of a reconstruction by name: all but the discriminator's.

        Args:
            audio: (B, C, T) that was reconstructed.
            found: by `model`.
            step: train steps done.
        """
        terms = self.losses(found.audio, found.decoded, found.info, step)
        if self.distillation is not None:
            teacher = self.distillation.teacher
            terms |= self.distillation(model, self._heard(audio, teacher.in_channels), found, step)
        return terms

    def _adversarial_terms(self, found: Reconstruction, discriminator: Discriminator) -> dict[str, Tensor]:
        weights = self.config.loss_configs.discriminator.weights  # type: ignore[union-attr]  # there is one
        with frozen(discriminator):
            adversarial, features = discriminator.generator_loss(found.audio, found.decoded)
        return {"adversarial": weights.adversarial * adversarial, "feature_matching": weights.feature_matching * features}

    def reconstruct(self, model: AudioAutoencoder, audio: Tensor, *, frozen: bool = False) -> Reconstruction:
        """Audio (B, C, T) through `model`.

        Args:
            frozen: what makes the latents stays as it is: neither encoder nor bottleneck gets a gradient from them, no codebook
                follows them, and they are those of inference. What the bottleneck does when decoding learns with the decoder.
        """
        heard = self._heard(audio, model.in_channels)
        if frozen:
            with torch.no_grad(), evaluation_mode(model):
                latents, info = model.encode(heard, return_info=True)
        else:
            latents, info = model.encode(heard, return_info=True)
        kept = latents
        if self.config.latent_mask_ratio > 0 and model.training:
            kept = latents * (torch.rand_like(latents) >= self.config.latent_mask_ratio)
        decoded = model.decode(kept)
        length = min(audio.shape[-1], decoded.shape[-1])
        return Reconstruction(audio[..., :length], decoded[..., :length], latents, kept, info)

    def _heard(self, audio: Tensor, channels: int) -> Tensor:
        """What an encoder of that many channels gets of audio (B, C, T)."""
        return audio.mean(dim=1, keepdim=True).expand(-1, channels, -1) if self.config.force_input_mono else audio


def _discriminator_loss(found: Reconstruction, discriminator: Discriminator) -> LossOutput:
    loss = discriminator.discriminator_loss(found.audio, found.decoded)
    return LossOutput(loss, {"loss_discriminator": loss.detach()})


def _summed(terms: dict[str, Tensor], found: Reconstruction) -> LossOutput:
    loss = torch.stack(list(terms.values())).sum()
    logs = {"loss": loss.detach(), **{f"loss_{name}": term.detach() for name, term in terms.items()}}
    return LossOutput(loss, logs | {"latent_std": found.latents.detach().std()})


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
