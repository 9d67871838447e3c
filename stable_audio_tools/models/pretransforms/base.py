"""A pretransform is a fixed, usually invertible, map between audio and the domain that a model is trained in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import Problem


class Pretransform(nn.Module, ABC):
    """`encode` audio (B, io_channels, T) to (B, encoded_channels, T / downsampling_ratio), and `decode` back.

    Frozen and in eval mode whatever its owner does, unless `enable_grad`. Gradients pass through either way, so that what stands
    before it can be trained on what comes out.

    io_channels: audio channels. encoded_channels: channels of the other side.
    downsampling_ratio: audio samples per encoded frame.
    num_quantizers, codebook_size: how many tokens a frame has and how many values each may take; 0 without tokens.
    """

    num_quantizers = 0
    codebook_size = 0

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

    @property
    def is_discrete(self) -> bool:
        """There are tokens."""
        return self.num_quantizers > 0

    def tokenize(self, audio: Tensor) -> Tensor:
        """Audio (B, io_channels, T) -> tokens (B, num_quantizers, T / downsampling_ratio), int64 in 0..codebook_size-1.

        Raises:
            ValueError: this pretransform has no tokens.
        """
        raise ValueError(f"{type(self).__name__} is continuous: it has no tokens")

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, num_quantizers, T) -> audio (B, io_channels, T * downsampling_ratio).

        Raises:
            ValueError: this pretransform has no tokens, or these are not its own.
        """
        raise ValueError(f"{type(self).__name__} is continuous: it has no tokens")

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
    """Wiring around a pretransform, and its sizes, known before it is built.

    tokens_only: it makes tokens of audio, and no latents.
    needs_checkpoint: its weights come from a checkpoint, and are random until one is loaded.
    """

    tokens_only: ClassVar[bool] = False
    needs_checkpoint: ClassVar[bool] = False

    @property
    @abstractmethod
    def io_channels(self) -> int: ...

    @property
    @abstractmethod
    def encoded_channels(self) -> int: ...

    @property
    @abstractmethod
    def downsampling_ratio(self) -> int: ...

    @property
    def length_multiple(self) -> int:
        """What the number of audio samples must be a multiple of; where it is not the ratio, samples beyond whole frames are left out."""
        return self.downsampling_ratio

    @property
    def num_quantizers(self) -> int:
        """Tokens of a frame; 0 without tokens."""
        return 0

    @property
    def codebook_size(self) -> int:
        """Values a token may take; 0 without tokens."""
        return 0

    @property
    def is_discrete(self) -> bool:
        """There are tokens."""
        return self.num_quantizers > 0

    @abstractmethod
    def build(self, sample_rate: int) -> Pretransform: ...


def latent_problems(pretransform: BasePretransformConfig | None, key: str = "pretransform") -> list[Problem]:
    """Of an object that works on the latents of the pretransform under its `key`: that this one has none."""
    if pretransform is None or not pretransform.tokens_only:
        return []
    name = pretransform.type  # type: ignore[attr-defined]
    fix = "use one that makes latents, such as an autoencoder, or make a language model of its tokens"
    return [Problem((key,), f"{name} makes tokens alone, and here its latents are needed", fix)]


class WeightlessPretransformConfig(BasePretransformConfig):
    """A pretransform that has nothing to learn."""

    enable_grad: Literal[False] = Field(False, description="accepted, no effect: there are no weights to train")
