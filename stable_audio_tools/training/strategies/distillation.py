"""Distillation of an autoencoder: it learns the latents of a teacher, so that each can decode what the other encodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.nn.exact import at_least_single
from stable_audio_tools.nn.reconstruction import MultiResolutionSTFT
from stable_audio_tools.nn.teacher import Teacher
from stable_audio_tools.training.losses.config import AutoencoderLossConfig

if TYPE_CHECKING:
    from stable_audio_tools.training.strategies.adversarial import Reconstruction


class Distillation(nn.Module):
    """The terms that a teacher adds. All of them have a gradient; the teacher's weights have none and are in no checkpoint.

    Args:
        config: `loss_configs`; its spectral loss is how sounds are compared.
        teacher: with latents of the same size and rate.
        sample_rate: Hz.
    """

    def __init__(self, config: AutoencoderLossConfig, teacher: AudioAutoencoder, sample_rate: int):
        super().__init__()
        self._teacher = Teacher(teacher)
        self.terms = config.distillation_terms()
        spectral = config.spectral if any(name.startswith("mrstft") for name in self.terms) else None
        self.stft = MultiResolutionSTFT(spectral.config, sample_rate) if spectral else None

    @property
    def teacher(self) -> AudioAutoencoder:
        return cast(AudioAutoencoder, self._teacher.module)

    def forward(self, model: AudioAutoencoder, heard: Tensor, found: Reconstruction, step: int) -> dict[str, Tensor]:
        """Weighted scalars by name. Terms of weight 0 are not computed.

        Args:
            heard: (B, C, T) what the teacher's encoder gets.
            found: the reconstruction by `model`.
            step: train steps done, for weights that fade.
        """
        with torch.no_grad():
            theirs = self.teacher.encode(heard)
        values: dict[str, Tensor] = {}
        if "latent_distill" in self.terms:
            values["latent_distill"] = _latent_distance(found.latents, theirs)
        if "mrstft_distill" in self.terms:
            with torch.no_grad():
                wanted = self.teacher.decode(theirs)
            values["mrstft_distill"] = self._distance(wanted, found.decoded)
        if "mrstft_own_latents_teacher" in self.terms:
            values["mrstft_own_latents_teacher"] = self._distance(found.audio, self.teacher.decode(found.kept))
        if "mrstft_teacher_latents_own" in self.terms:
            values["mrstft_teacher_latents_own"] = self._distance(found.audio, model.decode(theirs))
        return {name: self.terms[name](value, step) for name, value in values.items()}

    def _distance(self, target: Tensor, estimate: Tensor) -> Tensor:
        """Of two sounds (B, C, T), as far as both go."""
        assert self.stft is not None
        length = min(target.shape[-1], estimate.shape[-1])
        return self.stft(target[..., :length], estimate[..., :length])["mrstft"]


def _latent_distance(own: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of latents (B, D, T), as far as both go."""
    frames = min(own.shape[-1], theirs.shape[-1])
    return F.mse_loss(at_least_single(own[..., :frames]), at_least_single(theirs[..., :frames]))
