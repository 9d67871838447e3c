"""What every encoder and decoder config says about itself, so that a model's sizes are checked before any weight exists."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

from pydantic import Field
from torch import nn

from stable_audio_tools.configs.base import StrictModel


class BaseCodecConfig(StrictModel):
    """Wiring around either half of an autoencoder.

    The `..._key`s name the keys of the inner `config` that decide the sizes.
    """

    in_channels_key: ClassVar[str]
    out_channels_key: ClassVar[str]
    ratio_key: ClassVar[str] = "strides"

    requires_grad: bool = Field(True, description="false freezes the weights")
    config: StrictModel

    @property
    def in_channels(self) -> int:
        channels: int = getattr(self.config, self.in_channels_key)
        return channels

    @property
    def out_channels(self) -> int:
        channels: int = getattr(self.config, self.out_channels_key)
        return channels

    @property
    def downsampling_ratio(self) -> int:
        """Audio samples, or frames of the autoencoder's pretransform, per latent frame."""
        return math.prod(getattr(self.config, self.ratio_key))

    @abstractmethod
    def make(self) -> nn.Module:
        """The module of this config; `build` then sets what is trained."""

    def build(self) -> nn.Module:
        return self.make().requires_grad_(self.requires_grad)


class BaseEncoderConfig(BaseCodecConfig):
    """An encoder: (B, in_channels, T) -> (B, out_channels, T / downsampling_ratio)."""

    in_channels_key = "in_channels"
    out_channels_key = "latent_dim"

    @property
    def length_multiple(self) -> int:
        """What T must be a multiple of; 1 where what exceeds whole latent frames is left out."""
        return 1


class BaseDecoderConfig(BaseCodecConfig):
    """A decoder: (B, in_channels, T) -> (B, out_channels, T * downsampling_ratio); odd strides may leave out some samples at the end."""

    in_channels_key = "latent_dim"
    out_channels_key = "out_channels"

    soft_clip: bool = Field(False, description="tanh on the audio, behind the pretransform")
