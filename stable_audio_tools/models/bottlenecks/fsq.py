"""`fsq` and `dithered_fsq`: latent channels rounded to a few levels (arXiv:2309.15505)."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.quantize_scalar import FSQ, DitheredFSQ

from .base import BaseBottleneckConfig, Bottleneck, Info, append_noise, check_tokens

Levels = Annotated[int, Field(ge=2)]


class FSQParams(StrictModel):
    levels: tuple[Levels, ...] = Field(min_length=1, description="of each channel of a codebook; their product is the codebook's size")
    num_codebooks: PositiveInt = Field(default=1, description="codebooks side by side, each with len(levels) channels")
    dim: PositiveInt | None = Field(
        default=None, description="latent channels, by linear maps to and from the codebooks' where they differ; default: theirs"
    )
    projection_has_bias: bool = Field(default=True, description="of those maps")
    noise_augment_dim: NonNegativeInt = Field(default=0, description="channels of noise that the decoder gets beside the latents")
    scale: float | None = Field(default=None, description="accepted, no effect")
    keep_num_codebooks_dim: bool | None = Field(default=None, description="accepted, no effect: tokens always have the codebook dimension")
    channel_first: Literal[False] = Field(default=False, description="accepted, no effect")
    return_indices: Literal[True] = Field(default=True, description="accepted, no effect")


class FSQConfig(BaseBottleneckConfig):
    """Latent channels rounded to levels; no codebook to learn."""

    type: Literal["fsq"]
    config: FSQParams

    @property
    def latent_key(self) -> str:  # type: ignore[override]
        return "levels" if self.config.dim is None else "dim"

    @property
    def num_quantizers(self) -> int:
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        return math.prod(self.config.levels)

    @property
    def latent_channels(self) -> int:
        return self.config.dim or len(self.config.levels) * self.config.num_codebooks

    def decoder_channels(self, latent_dim: int) -> int:
        return latent_dim + self.config.noise_augment_dim

    def make(self) -> FSQBottleneck:
        return FSQBottleneck(self.config)


class FSQBottleneck(Bottleneck):
    """(B, C, T) -> rounded (B, C, T); `quantizer_indices` in the info are the tokens."""

    def __init__(self, params: FSQParams):
        super().__init__()
        codebooks, bias = params.num_codebooks, params.projection_has_bias
        self.quantizer = FSQ(params.levels, num_codebooks=codebooks, dim=params.dim, bias=bias)
        self.num_quantizers, self.codebook_size = codebooks, math.prod(params.levels)
        self.noise_augment_dim = params.noise_augment_dim

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        latents, tokens = self.quantizer(x.mT)
        return latents.mT, {"quantizer_indices": tokens}

    def decode(self, latents: Tensor) -> Tensor:
        return append_noise(latents, self.noise_augment_dim)

    def tokenize(self, x: Tensor, *, sample: bool = True) -> Tensor:
        return self.quantizer.tokenize(x.mT)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.num_quantizers, self.codebook_size)
        return self.decode(self.quantizer.lookup(tokens).mT)


class DitheredFSQParams(StrictModel):
    dim: PositiveInt = Field(description="channels of a codebook")
    levels: Levels | tuple[Levels, ...] = Field(description="of each of those channels: one number, or dim numbers")
    num_codebooks: PositiveInt = Field(default=1, description="codebooks side by side; the latents have dim channels for each")
    noise_dropout: float = Field(default=0.05, ge=0, le=1, description="share of training items without noise")
    dither_inference: bool = Field(default=True, description="accepted, no effect: outside of training nothing is random")

    @model_validator(mode="after")
    def _levels_for_every_channel(self) -> Self:
        if isinstance(self.levels, tuple) and len(self.levels) != self.dim:
            message = f"levels has {len(self.levels)} entries, but dim is {self.dim}"
            raise ConfigError([Problem(("levels",), message, f"give {self.dim} numbers, or one for all", self.levels)])
        return self

    @property
    def channel_levels(self) -> tuple[int, ...]:
        """One number per channel of a codebook."""
        return self.levels if isinstance(self.levels, tuple) else (self.levels,) * self.dim


class DitheredFSQConfig(BaseBottleneckConfig):
    """Latent channels within -1..1, with noise in training and rounded outside of it."""

    type: Literal["dithered_fsq"]
    config: DitheredFSQParams
    latent_key = "dim"

    @property
    def num_quantizers(self) -> int:
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        return math.prod(self.config.channel_levels)

    @property
    def latent_channels(self) -> int:
        return self.config.dim * self.config.num_codebooks

    def make(self) -> DitheredFSQBottleneck:
        return DitheredFSQBottleneck(self.config)


class DitheredFSQBottleneck(Bottleneck):
    """(B, C, T) -> (B, C, T) in -1..1; `quantizer_indices` in the info are the tokens, of the nearest levels in training."""

    def __init__(self, params: DitheredFSQParams):
        super().__init__()
        levels, codebooks = params.channel_levels, params.num_codebooks
        self.quantizer = DitheredFSQ(levels, num_codebooks=codebooks, noise_dropout=params.noise_dropout)
        self.num_quantizers, self.codebook_size = codebooks, math.prod(levels)

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        latents, tokens = self.quantizer(x.mT)
        return latents.mT, {"quantizer_indices": tokens}

    def tokenize(self, x: Tensor, *, sample: bool = True) -> Tensor:
        return self.quantizer.tokenize(x.mT)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.num_quantizers, self.codebook_size)
        return self.quantizer.lookup(tokens).mT
