"""Invertible rearrangements of the waveform. `patched`: each frame is a patch of samples."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem

from .base import Pretransform, WeightlessPretransformConfig


class PatchedParams(StrictModel):
    channels: PositiveInt = Field(description="audio channels")
    patch_size: PositiveInt = Field(description="samples in a patch")
    oversampling: PositiveInt = Field(1, description="how many patches hold each sample; patches begin patch_size / oversampling apart")

    @model_validator(mode="after")
    def _whole_hop(self) -> Self:
        if self.patch_size % self.oversampling:
            message = f"patch_size {self.patch_size} is no multiple of oversampling {self.oversampling}"
            raise ConfigError([Problem(("oversampling",), message, "choose one that divides it", self.oversampling)])
        return self

    @property
    def hop(self) -> int:
        return self.patch_size // self.oversampling


class PatchedConfig(WeightlessPretransformConfig):
    type: Literal["patched"]
    config: PatchedParams

    @property
    def io_channels(self) -> int:
        return self.config.channels

    @property
    def encoded_channels(self) -> int:
        return self.config.channels * self.config.patch_size

    @property
    def downsampling_ratio(self) -> int:
        return self.config.hop

    def build(self, sample_rate: int) -> PatchedPretransform:
        return PatchedPretransform(self.config)


class PatchedPretransform(Pretransform):
    """Audio (B, C, T) <-> patches (B, C * patch_size, T / hop); channel c * patch_size + i is sample i of channel c's patch.

    hop = patch_size / oversampling, which is also the ratio. Overlapping patches say everything `oversampling` times (fewer times
    near the start), so decoding averages: the exact inverse on patches of audio, the least-squares one on anything else.
    """

    def __init__(self, params: PatchedParams):
        encoded_channels = params.channels * params.patch_size
        super().__init__(io_channels=params.channels, encoded_channels=encoded_channels, downsampling_ratio=params.hop)
        self.patch_size, self.hop = params.patch_size, params.hop

    def encode(self, audio: Tensor) -> Tensor:
        self.check_audio(audio)
        patches = F.pad(audio, (0, self.patch_size - self.hop)).unfold(-1, self.patch_size, self.hop)
        return patches.transpose(-1, -2).flatten(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        patches = latents.unflatten(1, (self.io_channels, self.patch_size)).transpose(-1, -2)
        length = latents.shape[-1] * self.hop
        summed, count = (overlap_add(x, self.hop)[..., :length] for x in (patches, patches.new_ones(patches.shape[-2:])))
        return summed / count


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """(..., N, size) -> (..., (N - 1) * hop + size): frame n is added at n * hop. `hop` divides `size`."""
    count, size = frames.shape[-2:]
    out = frames.new_zeros(*frames.shape[:-2], count + size // hop - 1, hop)
    for index, part in enumerate(frames.unflatten(-1, (size // hop, hop)).unbind(-2)):
        out[..., index : index + count, :] += part
    return out.flatten(-2)
