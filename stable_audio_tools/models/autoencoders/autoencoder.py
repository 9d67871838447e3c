"""AudioAutoencoder: pretransform, encoder, bottleneck, decoder; and its config, which checks that their sizes fit.

B batch, C channels, T audio samples or latent frames; one latent frame covers `downsampling_ratio` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.audio.resample import resample
from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError

from ..bottlenecks import Bottleneck, BottleneckConfig
from ..pretransforms import Pretransform, PretransformConfig, latent_problems
from . import DecoderConfig, EncoderConfig
from .chunking import map_chunks
from .sizes import size_problems


class AutoencoderBody(StrictModel):
    """The `model` object of an autoencoder config, and the `config` of an autoencoder pretransform."""

    encoder: EncoderConfig
    decoder: DecoderConfig
    bottleneck: BottleneckConfig | None = Field(None, description="absent: latents are what the encoder gives")
    pretransform: PretransformConfig | None = Field(None, description="applied to audio before the encoder, undone behind the decoder")
    latent_dim: PositiveInt = Field(description="latent channels, behind the bottleneck")
    downsampling_ratio: PositiveInt = Field(description="audio samples per latent frame, the pretransform's included")
    io_channels: PositiveInt = Field(description="audio channels")
    in_channels: PositiveInt = Field(None, description="audio channels in, if not io_channels")  # type: ignore[assignment]
    out_channels: PositiveInt = Field(None, description="audio channels out, if not io_channels")  # type: ignore[assignment]

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        # As in the peer, whose code reads both keys with None for a default, so that programs write it.
        if not isinstance(value, Mapping):
            return value
        return {key: entry for key, entry in value.items() if entry is not None or key not in ("in_channels", "out_channels")}

    @model_validator(mode="after")
    def _in_and_out_are_io(self) -> Self:
        # Past `frozen` and not marked as set, so that a dump repeats what was written.
        self.__dict__.update({name: self.io_channels for name in ("in_channels", "out_channels") if getattr(self, name) is None})
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if problems := latent_problems(self.pretransform) or size_problems(self):
            raise ConfigError(problems)
        return self

    @property
    def num_quantizers(self) -> int:
        """Tokens of a frame; 0 without tokens."""
        return self.bottleneck.num_quantizers if self.bottleneck else 0

    @property
    def codebook_size(self) -> int:
        """Values a token may take; 0 without tokens."""
        return self.bottleneck.codebook_size if self.bottleneck else 0

    @property
    def is_discrete(self) -> bool:
        """There are tokens."""
        return self.num_quantizers > 0

    @property
    def length_multiple(self) -> int:
        """What the number of audio samples must be a multiple of; samples beyond whole latent frames are left out."""
        return self.encoder.length_multiple * (self.pretransform.downsampling_ratio if self.pretransform else 1)

    def build(self, sample_rate: int) -> AudioAutoencoder:
        """The model, weights initialised; `sample_rate` in Hz."""
        return AudioAutoencoder(
            self.encoder.build(),
            self.decoder.build(),
            bottleneck=self.bottleneck.build() if self.bottleneck else None,
            pretransform=self.pretransform.build(sample_rate) if self.pretransform else None,
            latent_dim=self.latent_dim,
            downsampling_ratio=self.downsampling_ratio,
            sample_rate=sample_rate,
            io_channels=self.io_channels,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            soft_clip=self.decoder.soft_clip,
        )


class AudioAutoencoder(nn.Module):
    """Audio (B, in_channels, T) -> latents (B, latent_dim, T / downsampling_ratio) -> audio (B, out_channels, T).

    `encode` and `decode` take a batch as it is; `encode_audio` and `decode_audio` also work in overlapping chunks.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_dim: int,
        downsampling_ratio: int,
        sample_rate: int,
        io_channels: int = 2,
        bottleneck: Bottleneck | None = None,
        pretransform: Pretransform | None = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
        soft_clip: bool = False,
    ):
        super().__init__()
        self.encoder, self.decoder, self.bottleneck, self.pretransform = encoder, decoder, bottleneck, pretransform
        self.latent_dim, self.downsampling_ratio, self.sample_rate = latent_dim, downsampling_ratio, sample_rate
        self.io_channels, self.in_channels, self.out_channels = io_channels, in_channels or io_channels, out_channels or io_channels
        self.soft_clip = soft_clip

    @property
    def num_quantizers(self) -> int:
        """Tokens of a frame; 0 without tokens."""
        return self.bottleneck.num_quantizers if self.bottleneck is not None else 0

    @property
    def codebook_size(self) -> int:
        """Values a token may take; 0 without tokens."""
        return self.bottleneck.codebook_size if self.bottleneck is not None else 0

    @property
    def is_discrete(self) -> bool:
        """There are tokens."""
        return self.num_quantizers > 0

    def encode(
        self,
        audio: Tensor,
        *,
        return_info: bool = False,
        skip_bottleneck: bool = False,
        skip_pretransform: bool = False,
        iterate_batch: bool = False,
        sample: bool = True,
    ) -> Any:
        """Latents (B, latent_dim, T), or `(latents, info)` with `return_info`.

        Args:
            audio: (B, in_channels, samples); (B, encoded_channels, frames) of the pretransform with `skip_pretransform`.
            skip_bottleneck: return the encoder's own output.
            iterate_batch: one item at a time: less memory, same result.
            sample: False gives a variational bottleneck's mean, and draws no random number.

        Returns:
            info holds `pre_bottleneck_latents`, the encoder's output, and what the bottleneck reports, such as `kl`.
        """
        if self.pretransform is not None and not skip_pretransform:
            audio = _apply(self.pretransform.encode, audio, iterate_batch)
        latents = _apply(self.encoder, audio, iterate_batch)
        info = {"pre_bottleneck_latents": latents}
        if self.bottleneck is not None and not skip_bottleneck:
            latents, more = self.bottleneck.encode(latents, return_info=True, sample=sample)
            info.update(more)
        return (latents, info) if return_info else latents

    def decode(self, latents: Tensor, *, skip_bottleneck: bool = False, iterate_batch: bool = False) -> Tensor:
        """Latents (B, latent_dim, T) -> audio (B, out_channels, samples); `skip_bottleneck` where they are the decoder's own input."""
        if self.bottleneck is not None and not skip_bottleneck:
            latents = self.bottleneck.decode(latents)
        audio = _apply(self.decoder, latents, iterate_batch)
        if self.pretransform is not None:
            audio = _apply(self.pretransform.decode, audio, iterate_batch)
        return torch.tanh(audio) if self.soft_clip else audio

    def encode_audio(
        self,
        audio: Tensor,
        *,
        chunked: bool = False,
        overlap: int = 32,
        chunk_size: int = 128,
        skip_bottleneck: bool = False,
        iterate_batch: bool = False,
        sample: bool = True,
    ) -> Tensor:
        """`encode`; where `chunked`, in chunks of `chunk_size` latent frames of which neighbours share `overlap`, see `map_chunks`."""
        encode = partial(self.encode, skip_bottleneck=skip_bottleneck, iterate_batch=iterate_batch, sample=sample)
        if not chunked:
            return encode(audio)
        return map_chunks(encode, audio, frame_in=self.downsampling_ratio, frame_out=1, chunk_size=chunk_size, overlap=overlap)

    def decode_audio(
        self,
        latents: Tensor,
        *,
        chunked: bool = False,
        overlap: int = 32,
        chunk_size: int = 128,
        skip_bottleneck: bool = False,
        iterate_batch: bool = False,
    ) -> Tensor:
        """`decode`; where `chunked`, in chunks as in `encode_audio`."""
        decode = partial(self.decode, skip_bottleneck=skip_bottleneck, iterate_batch=iterate_batch)
        if not chunked:
            return decode(latents)
        return map_chunks(decode, latents, frame_in=1, frame_out=self.downsampling_ratio, chunk_size=chunk_size, overlap=overlap)

    @torch.no_grad()
    def tokenize(
        self,
        audio: Tensor,
        *,
        chunked: bool = False,
        overlap: int = 32,
        chunk_size: int = 128,
        iterate_batch: bool = False,
        sample: bool = True,
    ) -> Tensor:
        """Audio (B, in_channels, samples) -> tokens (B, num_quantizers, frames), int64; chunks as in `encode_audio`.

        Raises:
            ValueError: the bottleneck has no tokens.
        """
        bottleneck = self._discrete()

        def tokens(part: Tensor) -> Tensor:
            return bottleneck.tokenize(self.encode(part, skip_bottleneck=True, iterate_batch=iterate_batch), sample=sample)

        if not chunked:
            return tokens(audio)
        return map_chunks(tokens, audio, frame_in=self.downsampling_ratio, frame_out=1, chunk_size=chunk_size, overlap=overlap)

    def decode_tokens(
        self,
        tokens: Tensor,
        *,
        chunked: bool = False,
        overlap: int = 32,
        chunk_size: int = 128,
        iterate_batch: bool = False,
    ) -> Tensor:
        """Tokens (B, num_quantizers, frames) -> audio (B, out_channels, samples): what `decode` gives for the latents they stand for.

        Raises:
            ValueError: the bottleneck has no tokens, or these are not its own.
        """
        latents = self._discrete().decode_tokens(tokens).to(next(self.parameters()).dtype)
        return self.decode_audio(
            latents, chunked=chunked, overlap=overlap, chunk_size=chunk_size, skip_bottleneck=True, iterate_batch=iterate_batch
        )

    def _discrete(self) -> Bottleneck:
        if self.bottleneck is None or not self.is_discrete:
            what = f"{type(self.bottleneck).__name__} is continuous" if self.bottleneck is not None else "it has no bottleneck"
            raise ValueError(f"this autoencoder has no tokens: {what}")
        return self.bottleneck

    def preprocess_audio_for_encoder(self, audio: Tensor, in_sr: int) -> Tensor:
        """One clip (T,) or (C, T), or a batch (B, C, T), at `in_sr` Hz: see `preprocess_audio_list_for_encoder`."""
        clips = list(audio) if audio.ndim == 3 else [audio]
        return self.preprocess_audio_list_for_encoder(clips, in_sr)

    def preprocess_audio_list_for_encoder(self, audio_list: Sequence[Tensor], in_sr_list: int | Sequence[int]) -> Tensor:
        """Clips of any length and rate as one batch that `encode` takes.

        Each is resampled to `sample_rate` and given `in_channels` channels; zeros follow up to the longest clip's length, rounded up to a
        multiple of `downsampling_ratio`.

        Args:
            audio_list: clips (T,) or (C, T).
            in_sr_list: their rates in Hz; one number for all alike.

        Returns:
            (B, in_channels, T).

        Raises:
            ValueError: no clip, another number of rates than clips, or channels that cannot be converted.
        """
        rates = [in_sr_list] * len(audio_list) if isinstance(in_sr_list, int) else list(in_sr_list)
        if not audio_list or len(rates) != len(audio_list):
            raise ValueError(f"expected one sample rate per clip and at least one clip, got {len(rates)} rates for {len(audio_list)} clips")
        clips = [self._conform(audio, rate) for audio, rate in zip(audio_list, rates, strict=True)]
        length = max(clip.shape[-1] for clip in clips)
        length += -length % self.downsampling_ratio
        return torch.stack([F.pad(clip, (0, length - clip.shape[-1])) for clip in clips])

    def _conform(self, audio: Tensor, rate: int) -> Tensor:
        """(T,) or (C, T) at `rate` -> (in_channels, T) at the model's rate."""
        audio = audio[None] if audio.ndim == 1 else audio
        if audio.ndim != 2 or not audio.shape[1] or (self.in_channels != 1 and audio.shape[0] not in (1, self.in_channels)):
            raise ValueError(f"a clip has shape {tuple(audio.shape)}, expected (samples,), (1, samples) or ({self.in_channels}, samples)")
        audio = audio.mean(0, keepdim=True) if self.in_channels == 1 else audio.expand(self.in_channels, -1)
        return resample(audio, rate, self.sample_rate).to(audio)


def _apply(function: Callable[[Tensor], Tensor], x: Tensor, iterate_batch: bool) -> Tensor:
    return torch.cat([function(item) for item in x.split(1)]) if iterate_batch else function(x)
