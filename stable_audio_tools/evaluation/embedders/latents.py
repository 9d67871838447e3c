"""`latents`: statistics of an autoencoder's latents over time: what the model itself can tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.inference.latents import LatentEncoder, Stored


class LatentStatistics:
    """Mean and standard deviation over the frames of each latent channel.

    Of a variational bottleneck's means, without a draw. Audio is filled up with silence to whole frames.

    Args:
        encoder: makes the latents; frozen by the caller.
        sample_rate: Hz of the audio that it expects.
    """

    name = "latents"

    def __init__(self, encoder: LatentEncoder, sample_rate: int):
        self.encoder, self.sample_rate = encoder, sample_rate

    @classmethod
    def of(cls, model: nn.Module) -> LatentStatistics | None:
        """Of a model: itself, or its pretransform; None: it has no latents."""
        encoder = LatentEncoder.of(model)
        return None if encoder is None else cls(encoder, int(getattr(model, "sample_rate")))  # noqa: B009  a model of any type

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        return {
            "embedder": self.name,
            "hash": self.encoder.fingerprint()[:12],
            "sample_rate": self.sample_rate,
            "statistics": "mean, deviation",
        }

    @property
    def _stored(self) -> Stored:
        return "mean" if self.encoder.is_variational else "latents"

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        audio = to_channels(audio.detach().float(), self.encoder.io_channels)
        ratio = self.encoder.downsampling_ratio
        audio = F.pad(audio, (0, -audio.shape[-1] % ratio))
        latents = self.encoder.encode(audio[None], self._stored)[0].float().cpu()
        return torch.cat((latents.mean(-1), latents.std(-1, correction=0)))
