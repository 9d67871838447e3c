"""`dac_pretrained`: the Descript audio codec with published weights (arXiv:2306.06546), continuous and as tokens.

B batch, C latent channels, T samples or frames, Q codebooks.
"""

from __future__ import annotations

import logging
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.dac import DACDecoder, DACEncoder
from stable_audio_tools.models.bottlenecks.base import check_tokens
from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.models.checkpoints import load_into, load_weights
from stable_audio_tools.models.weight_files import read_weight_file
from stable_audio_tools.nn.quantize_factorized import ResidualFactorizedVQ

from .base import BasePretransformConfig, Pretransform
from .codec_files import download, one_of, told_at

log = logging.getLogger(__name__)

RELEASES = "https://github.com/descriptinc/descript-audio-codec/releases/download"
CACHE = Path("~/.cache/descript/dac")  # the publisher's own, so that a file downloaded once serves both
RELEASED: dict[tuple[str, str], tuple[str, str, dict[str, Any]]] = {
    ("44khz", "8kbps"): ("0.0.1", "weights.pth", {}),
    ("44khz", "16kbps"): ("1.0.0", "weights_44khz_16kbps.pth", {"latent_dim": 128, "n_codebooks": 18}),
    ("24khz", "8kbps"): (
        "0.0.4",
        "weights_24khz.pth",
        {"encoder_rates": [2, 4, 5, 8], "decoder_rates": [8, 5, 4, 2], "n_codebooks": 32, "sample_rate": 24000},
    ),
    ("16khz", "8kbps"): (
        "0.0.5",
        "weights_16khz.pth",
        {"encoder_rates": [2, 4, 5, 8], "decoder_rates": [8, 5, 4, 2], "n_codebooks": 12, "sample_rate": 16000},
    ),
}
"""Release, file, and how the codec in it differs from the defaults below."""


class DACParams(StrictModel):
    """A codec as its weight file describes it (`metadata.kwargs`); the defaults are the publisher's."""

    encoder_dim: PositiveInt = 64
    encoder_rates: tuple[PositiveInt, ...] = (2, 4, 8, 8)
    latent_dim: PositiveInt | None = Field(default=None, description="absent: the encoder's innermost width")
    decoder_dim: PositiveInt = 1536
    decoder_rates: tuple[PositiveInt, ...] = (8, 8, 4, 2)
    n_codebooks: PositiveInt = 9
    codebook_size: PositiveInt = 1024
    codebook_dim: PositiveInt | tuple[PositiveInt, ...] = 8
    sample_rate: PositiveInt = 44100

    @property
    def latent_channels(self) -> int:
        return self.latent_dim or self.encoder_dim * 2 ** len(self.encoder_rates)

    @property
    def codebook_dims(self) -> tuple[int, ...]:
        return self.codebook_dim if isinstance(self.codebook_dim, tuple) else (self.codebook_dim,) * self.n_codebooks


class DACPretrainedParams(StrictModel):
    """With `path` the file says what codec it holds; without, the released weights are downloaded when the model is built."""

    path: str | None = Field(default=None, description="a weight file of the publisher's format, or its folder; absent: a released one")
    model_type: Literal["44khz", "24khz", "16khz"] = Field(default="44khz", description="released weights: the sample rate")
    model_bitrate: Literal["8kbps", "16kbps"] = Field(default="8kbps", description="released weights: 16kbps exist for 44khz only")
    scale: float = Field(default=1.0, gt=0, description="latents are divided by it, best their standard deviation")
    quantize_on_decode: bool = Field(default=True, description="latents are what the encoder gives, quantised on the way back; else before")
    chunked: bool = Field(default=True, description="accepted, no effect: convolutions take any length at once")

    @model_validator(mode="after")
    def _codec_is_known(self) -> Self:
        if (self.model_type, self.model_bitrate) not in RELEASED:
            message = f"there are no released weights of {self.model_bitrate} at {self.model_type}"
            raise ConfigError([Problem(("model_bitrate",), message, 'set it to "8kbps", or model_type to "44khz"', self.model_bitrate)])
        told_at("path", lambda: self.codec)
        return self

    @cached_property
    def codec(self) -> DACParams:
        """What codec it is, from the file's metadata or the list of released ones."""
        return (
            DACParams.model_validate(RELEASED[self.model_type, self.model_bitrate][2]) if self.path is None else described_in(self.file())
        )

    def file(self) -> Path:
        """The weight file; a released one is downloaded if it is not there yet.

        Raises:
            ConfigError: there is none.
        """
        release, name, _ = RELEASED[self.model_type, self.model_bitrate]
        cached = f"weights_{self.model_type}_{self.model_bitrate}_{release}.pth"
        if self.path is not None:
            return one_of(Path(self.path), ("weights.pth", "dac/weights.pth", name, cached, "*.pth"))
        return download(f"{RELEASES}/{release}/{name}", CACHE.expanduser() / cached)


def described_in(file: Path) -> DACParams:
    """The codec that a weight file of the publisher's format says it holds.

    Raises:
        ConfigError: it does not say.
    """
    metadata = read_weight_file(file, header_only=True).content.get("metadata")
    kwargs = metadata.get("kwargs") if isinstance(metadata, dict) else None
    if not isinstance(kwargs, dict):
        message = 'holds no "metadata" with the "kwargs" of a Descript audio codec'
        raise bad_file(file, message, "name a file of the publisher's format: state_dict and metadata")
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in kwargs.items() if key in DACParams.model_fields}
    return validate(DACParams, known, f"metadata of {file}")


class DACPretrainedConfig(BasePretransformConfig):
    type: Literal["dac_pretrained"]
    config: DACPretrainedParams = Field(default_factory=DACPretrainedParams)
    enable_grad: bool = Field(False, description="train the codec's weights too; else they are frozen")

    @property
    def io_channels(self) -> int:
        return 1

    @property
    def encoded_channels(self) -> int:
        return self.config.codec.latent_channels

    @property
    def downsampling_ratio(self) -> int:
        return math.prod(self.config.codec.encoder_rates)

    @property
    def num_quantizers(self) -> int:
        return self.config.codec.n_codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.codec.codebook_size

    def build(self, sample_rate: int) -> DACPretransform:
        """The codec with its weights; on the meta device without, and nothing is downloaded.

        Raises:
            ConfigError: the weights cannot be had, or do not fit.
        """
        params = self.config
        if sample_rate != params.codec.sample_rate:
            log.warning("the model's sample_rate is %d Hz, but the DAC was trained at %d Hz", sample_rate, params.codec.sample_rate)
        weights = None if torch.get_default_device().type == "meta" else load_weights(params.file())
        codec = DAC(params.codec)
        if weights is not None:
            load_into(codec, weights)
        return DACPretransform(codec, scale=params.scale, quantize_on_decode=params.quantize_on_decode, enable_grad=self.enable_grad)


class DAC(nn.Module):
    """Encoder, quantizer and decoder under the names of published weights; `params` are kept."""

    def __init__(self, params: DACParams):
        super().__init__()
        self.params = params
        self.encoder = DACEncoder(1, params.encoder_dim, params.encoder_rates, params.latent_channels)
        self.quantizer = ResidualFactorizedVQ(params.latent_channels, params.codebook_size, params.codebook_dims)
        self.decoder = DACDecoder(params.latent_channels, params.decoder_dim, params.decoder_rates, 1)


class DACPretransform(Pretransform):
    """Mono audio (B, 1, T) <-> latents (B, C, T / ratio), divided by `scale`, or tokens (B, Q, T / ratio)."""

    def __init__(self, codec: DAC, *, scale: float = 1.0, quantize_on_decode: bool = True, enable_grad: bool = False):
        params = codec.params
        ratio = math.prod(params.encoder_rates)
        super().__init__(io_channels=1, encoded_channels=params.latent_channels, downsampling_ratio=ratio, enable_grad=enable_grad)
        self.model = codec
        self.num_quantizers, self.codebook_size = params.n_codebooks, params.codebook_size
        self.scale, self.quantize_on_decode = scale, quantize_on_decode
        if not enable_grad:
            self.requires_grad_(False).eval()

    def encode(self, audio: Tensor) -> Tensor:
        latents = self.model.encoder(self._cast(audio))
        latents = latents if self.quantize_on_decode else self.model.quantizer(latents).latents
        return latents.to(audio.dtype) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        z = self._cast(latents * self.scale)
        return self.model.decoder(self.model.quantizer(z).latents if self.quantize_on_decode else z).to(latents.dtype)

    def tokenize(self, audio: Tensor) -> Tensor:
        return self.model.quantizer.tokenize(self.model.encoder(self._cast(audio)))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.num_quantizers, self.codebook_size, fewer=True)
        return self.model.decoder(self.model.quantizer.lookup(tokens)).float()

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(next(self.model.parameters()).dtype)
