"""An autoencoder as the latent space of another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder, AutoencoderBody

from .base import BasePretransformConfig, Pretransform


class AutoencoderPretransformConfig(BasePretransformConfig):
    needs_checkpoint = True

    type: Literal["autoencoder"]
    config: AutoencoderBody
    scale: float = Field(1.0, gt=0, description="latents are divided by it, best their standard deviation")
    model_half: bool = Field(False, description="keep and run the autoencoder in float16")
    iterate_batch: bool = Field(False, description="one item at a time: less memory")
    chunked: bool = Field(False, description="long audio in overlapping chunks: less memory")
    enable_grad: bool = Field(False, description="train the autoencoder's weights too; else they are frozen")

    @model_validator(mode="before")
    @classmethod
    def _no_whole_config(cls, value: Any) -> Any:
        config = value.get("config") if isinstance(value, Mapping) else None
        if isinstance(config, Mapping) and "model" in config and "encoder" not in config:
            message = "a whole model config stands here, of which a pretransform takes the model alone"
            raise ConfigError([Problem(("config", "model"), message, 'put what is in "model" in its place', on_key=True)])
        return value

    @property
    def io_channels(self) -> int:
        return self.config.io_channels

    @property
    def encoded_channels(self) -> int:
        return self.config.latent_dim

    @property
    def downsampling_ratio(self) -> int:
        return self.config.downsampling_ratio

    @property
    def length_multiple(self) -> int:
        # Chunks are whole frames, and only where every stride is even are the frames of any length as many as those it holds.
        regular = all(stride % 2 == 0 for stride in getattr(self.config.encoder.config, self.config.encoder.ratio_key))
        return self.config.length_multiple if regular and not self.chunked else self.downsampling_ratio

    @property
    def num_quantizers(self) -> int:
        return self.config.num_quantizers

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    def build(self, sample_rate: int) -> AutoencoderPretransform:
        options = {key: getattr(self, key) for key in ("scale", "model_half", "iterate_batch", "chunked", "enable_grad")}
        return AutoencoderPretransform(self.config.build(sample_rate), **options)


class AutoencoderPretransform(Pretransform):
    """Audio -> latents / scale, and latents * scale -> audio, through `model`."""

    def __init__(
        self,
        model: AudioAutoencoder,
        *,
        scale: float = 1.0,
        model_half: bool = False,
        iterate_batch: bool = False,
        chunked: bool = False,
        enable_grad: bool = False,
    ):
        sizes = {"io_channels": model.io_channels, "encoded_channels": model.latent_dim, "downsampling_ratio": model.downsampling_ratio}
        super().__init__(**sizes, enable_grad=enable_grad)
        self.model = model.half() if model_half else model
        self.scale, self.iterate_batch, self.chunked = scale, iterate_batch, chunked
        self.num_quantizers, self.codebook_size = model.num_quantizers, model.codebook_size
        if not enable_grad:
            self.requires_grad_(False).eval()

    def encode(self, audio: Tensor) -> Tensor:
        latents = self.model.encode_audio(self._cast(audio), chunked=self.chunked, iterate_batch=self.iterate_batch)
        return latents.to(audio.dtype) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        audio = self.model.decode_audio(self._cast(latents * self.scale), chunked=self.chunked, iterate_batch=self.iterate_batch)
        return audio.to(latents.dtype)

    def tokenize(self, audio: Tensor) -> Tensor:
        return self.model.tokenize(self._cast(audio), chunked=self.chunked, iterate_batch=self.iterate_batch)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return self.model.decode_tokens(tokens, chunked=self.chunked, iterate_batch=self.iterate_batch).float()

    def _cast(self, x: Tensor) -> Tensor:
        """In the precision that the weights have now: a cast of the whole model overrides `model_half`."""
        return x.to(next(self.model.parameters()).dtype)
