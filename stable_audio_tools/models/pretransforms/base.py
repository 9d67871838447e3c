"""A pretransform is a fixed, usually invertible, map between audio and the domain that a model is trained in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Self

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel


class Pretransform(nn.Module, ABC):
    """`encode` audio (B, io_channels, T) to (B, encoded_channels, T / downsampling_ratio), and `decode` back.

    Frozen and in eval mode whatever its owner does, unless `enable_grad`. Gradients pass through either way, so that what stands
    before it can be trained on what comes out.

    io_channels: audio channels. encoded_channels: channels of the other side.
    downsampling_ratio: audio samples per encoded frame. is_discrete: there are tokens.
    """

    is_discrete = False

    def __init__(self, *, io_channels: int, encoded_channels: int, downsampling_ratio: int, enable_grad: bool = False):
        super().__init__()
        self.io_channels, self.encoded_channels, self.downsampling_ratio = io_channels, encoded_channels, downsampling_ratio
        self.enable_grad = enable_grad

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and self.enable_grad)

    @abstractmethod
    def encode(self, audio: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor: ...

    def check_audio(self, audio: Tensor) -> None:
        """Raises ValueError unless `audio` is (B, io_channels, whole frames)."""
        if audio.ndim != 3 or audio.shape[1] != self.io_channels or audio.shape[2] % self.downsampling_ratio:
            wanted = f"(batch, {self.io_channels}, a multiple of {self.downsampling_ratio})"
            raise ValueError(f"audio has shape {tuple(audio.shape)}, expected {wanted}: convert the channels, pad the length")

    def check_latents(self, latents: Tensor) -> None:
        """Raises ValueError unless `latents` is (B, encoded_channels, T)."""
        if latents.ndim != 3 or latents.shape[1] != self.encoded_channels:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, expected (batch, {self.encoded_channels}, frames)")


class BasePretransformConfig(StrictModel):
    """Wiring around a pretransform, and its sizes, known before it is built."""

    @property
    @abstractmethod
    def io_channels(self) -> int: ...

    @property
    @abstractmethod
    def encoded_channels(self) -> int: ...

    @property
    @abstractmethod
    def downsampling_ratio(self) -> int: ...

    @abstractmethod
    def build(self, sample_rate: int) -> Pretransform: ...


class WeightlessPretransformConfig(BasePretransformConfig):
    """A pretransform that has nothing to learn."""

    enable_grad: Literal[False] = Field(False, description="accepted, no effect: there are no weights to train")
