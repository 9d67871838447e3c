"""`dac_rvq` and `dac_rvq_vae`: the residual quantizer of the Descript audio codec (arXiv:2306.06546)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.quantize_factorized import ResidualFactorizedVQ

from .base import BaseBottleneckConfig, Bottleneck, Info, append_noise, check_tokens
from .continuous import draw_latents


class DACRVQVAEParams(StrictModel):
    input_dim: PositiveInt = Field(default=512, description="latent channels")
    n_codebooks: PositiveInt = Field(description="codebooks, each for what those before it left")
    codebook_size: PositiveInt = Field(description="entries of a codebook")
    codebook_dim: PositiveInt | tuple[PositiveInt, ...] = Field(
        default=8, description="channels of entries: one number, or one per codebook"
    )
    quantizer_dropout: float = Field(default=0.0, ge=0, le=1, description="share of items that train with a random number of codebooks")
    quantize_on_decode: bool = Field(default=False, description="latents stay what the encoder gave, and are quantised before the decoder")

    @model_validator(mode="after")
    def _one_width_per_codebook(self) -> Self:
        if isinstance(self.codebook_dim, tuple) and len(self.codebook_dim) != self.n_codebooks:
            message = f"codebook_dim has {len(self.codebook_dim)} entries for {self.n_codebooks} codebooks"
            raise ConfigError([Problem(("codebook_dim",), message, f"give {self.n_codebooks}, or one number", self.codebook_dim)])
        return self

    @property
    def codebook_dims(self) -> tuple[int, ...]:
        """Channels of each codebook's entries."""
        return self.codebook_dim if isinstance(self.codebook_dim, tuple) else (self.codebook_dim,) * self.n_codebooks


class DACRVQParams(DACRVQVAEParams):
    noise_augment_dim: NonNegativeInt = Field(default=0, description="channels of noise that the decoder gets beside the latents")


class BaseDACRVQConfig(BaseBottleneckConfig):
    config: DACRVQVAEParams
    latent_key = "input_dim"

    @property
    def num_quantizers(self) -> int:
        return self.config.n_codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def latent_channels(self) -> int:
        return self.config.input_dim


class DACRVQConfig(BaseDACRVQConfig):
    """Every latent frame is a sum over codebooks that are looked up in a few channels."""

    loss_terms = ("codebook", "commitment")

    type: Literal["dac_rvq"]
    config: DACRVQParams

    def decoder_channels(self, latent_dim: int) -> int:
        return latent_dim + self.config.noise_augment_dim

    def make(self) -> DACRVQBottleneck:
        return DACRVQBottleneck(self.config, noise_augment_dim=self.config.noise_augment_dim)


class DACRVQVAEConfig(BaseDACRVQConfig):
    """`dac_rvq` behind the latents that `vae` draws."""

    loss_terms = ("kl", "codebook", "commitment")

    type: Literal["dac_rvq_vae"]

    def encoder_channels(self, latent_dim: int) -> int:
        return 2 * latent_dim

    def make(self) -> DACRVQVAEBottleneck:
        return DACRVQVAEBottleneck(self.config)


class DACRVQBottleneck(Bottleneck):
    """(B, C, T) -> quantised (B, C, T), or the same latents with `quantize_on_decode`.

    The info has either way, and in training with gradients: `pre_quantizer` (B, C, T); `z`, quantised; `codes`, the tokens; `latents`
    (B, sum of codebook channels, T) before the lookup; `vq/commitment_loss` and `vq/codebook_loss`, averaged over codebooks.
    """

    refines = True

    def __init__(self, params: DACRVQVAEParams, *, noise_augment_dim: int = 0):
        super().__init__()
        dims, dropout = params.codebook_dims, params.quantizer_dropout
        self.quantizer = ResidualFactorizedVQ(params.input_dim, params.codebook_size, dims, dropout=dropout)
        self.num_quantizers, self.codebook_size = params.n_codebooks, params.codebook_size
        self.quantize_on_decode, self.noise_augment_dim = params.quantize_on_decode, noise_augment_dim

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        quantized = self.quantizer(x)
        info = {
            "pre_quantizer": x,
            "z": quantized.latents,
            "codes": quantized.tokens,
            "latents": quantized.projected,
            "vq/commitment_loss": quantized.commitment / self.num_quantizers,
            "vq/codebook_loss": quantized.codebook / self.num_quantizers,
        }
        return (x if self.quantize_on_decode else quantized.latents), info

    def decode(self, latents: Tensor) -> Tensor:
        latents = self.quantizer(latents).latents if self.quantize_on_decode else latents
        return append_noise(latents, self.noise_augment_dim)

    def tokenize(self, x: Tensor, *, sample: bool = True) -> Tensor:
        return self.quantizer.tokenize(x)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.num_quantizers, self.codebook_size, fewer=True)
        return append_noise(self.quantizer.lookup(tokens), self.noise_augment_dim)


class DACRVQVAEBottleneck(DACRVQBottleneck):
    """(B, 2 C, T) -> (B, C, T): drawn as by the VAE, then as `dac_rvq`; also `kl`."""

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        latents, kl = draw_latents(x, sample=sample)
        quantized, info = super().encode_with_info(latents, sample=sample)
        return quantized, {"kl": kl, **info}

    def tokenize(self, x: Tensor, *, sample: bool = True) -> Tensor:
        return super().tokenize(draw_latents(x, sample=sample)[0])
