"""Diffusion autoencoder: audio to latents by an encoder, and back by a diffusion model that sees the latents at every step.

B batch, C channels. The network works on audio, or on the pretransform's frames: its T counts those. A latent frame covers
`frame_ratio` of them, and `downsampling_ratio` audio samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.objectives import Objective, parse_objective
from stable_audio_tools.diffusion.samplers import Callback, Generators, find_sampler, make_field, noise_like
from stable_audio_tools.diffusion.timesteps import DistributionShift

from .autoencoders import DecoderConfig, EncoderConfig
from .autoencoders.autoencoder import AudioAutoencoder
from .autoencoders.chunking import map_chunks
from .autoencoders.sizes import bottleneck_problems
from .bottlenecks import Bottleneck, BottleneckConfig
from .conditioners.routing import resize_signal
from .denoisers import DecoderDenoiserConfig, Denoiser
from .denoisers.base import halved
from .pretransforms import Pretransform, PretransformConfig, latent_problems

DECODING_STEPS = 100  # upstream's


class DiffusionAutoencoderBody(StrictModel):
    """The `model` object of a diffusion autoencoder config."""

    encoder: EncoderConfig | None = Field(default=None, description="absent: latents come from elsewhere, or are the audio itself")
    decoder: DecoderConfig | None = Field(
        default=None, description="works on the latents before the network sees them; absent: it sees the latents"
    )
    bottleneck: BottleneckConfig | None = Field(default=None, description="absent: latents are what the encoder gives")
    pretransform: PretransformConfig | None = Field(
        default=None, description="applied to audio before encoder and network, undone behind the network"
    )
    diffusion: DecoderDenoiserConfig
    latent_dim: PositiveInt = Field(description="latent channels, behind the bottleneck")
    downsampling_ratio: PositiveInt = Field(description="audio samples, or frames of the pretransform, per latent frame")
    io_channels: PositiveInt = Field(description="channels that the network makes: audio's, or the pretransform's")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        misfits = [*self._channel_problems(), *self._latent_problems(), *self._other_problems()]
        if problems := latent_problems(self.pretransform) or misfits:
            raise ConfigError(problems)
        return self

    @property
    def pretransform_ratio(self) -> int:
        """Audio samples per frame of the network."""
        return 1 if self.pretransform is None else self.pretransform.downsampling_ratio

    @property
    def frame_ratio(self) -> int:
        """The network's frames per latent frame."""
        return self.downsampling_ratio if self.encoder is None else self.encoder.downsampling_ratio

    @property
    def frame_multiple(self) -> int:
        """Numbers of the network's frames that come back from `decode` as they went into `encode` are multiples of it."""
        return math.lcm(self.frame_ratio, self.diffusion.frame_multiple[1])

    @property
    def length_multiple(self) -> int:
        """What a number of audio samples must be a multiple of; samples beyond whole latent frames are left out."""
        encoder = 1 if self.encoder is None else self.encoder.length_multiple
        return math.lcm(encoder, self.diffusion.frame_multiple[1]) * self.pretransform_ratio

    @property
    def min_samples(self) -> int:
        """The shortest audio: what the network takes, and one latent frame."""
        shortest = max(self.diffusion.min_frames, 1 if self.encoder is None else self.frame_ratio) * self.pretransform_ratio
        return -(-shortest // self.length_multiple) * self.length_multiple

    @property
    def audio_channels(self) -> tuple[str, int]:
        """The key that says so, and the channels of the audio."""
        if self.pretransform is not None:
            return "the pretransform's io_channels", self.pretransform.io_channels
        return "io_channels", self.io_channels

    def build(self, sample_rate: int) -> DiffusionAutoencoder:
        """The model, weights initialised; `sample_rate` in Hz."""
        return DiffusionAutoencoder(
            AudioAsLatents(self._encoded_channels) if self.encoder is None else halved(self.encoder.build()),
            nn.Identity() if self.decoder is None else self.decoder.build(),
            self.diffusion.build(),
            bottleneck=None if self.bottleneck is None else self.bottleneck.build(),
            pretransform=None if self.pretransform is None else self.pretransform.build(sample_rate),
            objective=parse_objective(self.diffusion.diffusion_objective),
            latent_dim=self.latent_dim,
            frame_ratio=self.frame_ratio,
            frame_multiple=self.frame_multiple,
            min_samples=self.min_samples,
            sample_rate=sample_rate,
            io_channels=self.io_channels,
        )

    @property
    def _encoded_channels(self) -> int:
        """Channels before the bottleneck."""
        return self.latent_dim if self.bottleneck is None else self.bottleneck.encoder_channels(self.latent_dim)

    @property
    def _decoded_channels(self) -> int:
        """Channels behind the bottleneck's way back."""
        return self.latent_dim if self.bottleneck is None else self.bottleneck.decoder_channels(self.latent_dim)

    def _channel_problems(self) -> Iterator[Problem]:
        """Encoder, network and pretransform meet at io_channels."""
        channels, network = self.io_channels, self.diffusion
        if self.pretransform is not None and self.pretransform.encoded_channels != channels:
            encoded = self.pretransform.encoded_channels
            message = f"io_channels is {channels}, but the pretransform gives {encoded} channels"
            yield Problem(("io_channels",), message, f"set it to {encoded}", channels)
        if network.io_channels != channels:
            yield _misfit(("diffusion", "config", network.io_channels_key), network.io_channels, channels, f"io_channels is {channels}")
        if self.encoder is not None and self.encoder.in_channels != channels:
            path = ("encoder", "config", self.encoder.in_channels_key)
            yield _misfit(path, self.encoder.in_channels, channels, f"io_channels is {channels}")

    def _latent_problems(self) -> Iterator[Problem]:
        """Encoder, bottleneck, decoder and network meet at latent_dim."""
        width = self.latent_dim
        yield from bottleneck_problems(self.bottleneck, width)
        kind = f"bottleneck {self.bottleneck.kind!r}" if self.bottleneck else "no bottleneck"
        if self.encoder is not None and self.encoder.out_channels != self._encoded_channels:
            path = ("encoder", "config", self.encoder.out_channels_key)
            reason = f"latent_dim {width} and {kind} need {self._encoded_channels}"
            yield _misfit(path, self.encoder.out_channels, self._encoded_channels, reason)
        beside, giver = self._decoded_channels, f"latent_dim {width} and {kind}"
        if self.decoder is not None:
            if self.decoder.in_channels != beside:
                path = ("decoder", "config", self.decoder.in_channels_key)
                yield _misfit(path, self.decoder.in_channels, beside, f"latent_dim {width} and {kind} give {beside}")
            beside, giver = self.decoder.out_channels, f"the decoder's {self.decoder.out_channels_key}"
        key, seen = self.diffusion.cond_channels
        if seen != beside:
            yield _misfit(("diffusion", "config", key), seen, beside, f"{giver} give it {beside} channels to see")

    def _other_problems(self) -> Iterator[Problem]:
        ratio, before = self.frame_ratio, self.pretransform_ratio
        # With a pretransform upstream counts frames of it, other models count audio samples; either is clear beside an encoder.
        if self.downsampling_ratio not in (ratio, ratio * before) and self.encoder is not None:
            path = ("encoder", "config", self.encoder.ratio_key)
            message = f"the product of {'.'.join(path)} is {ratio}, but downsampling_ratio is {self.downsampling_ratio}"
            yield Problem(path, message, f"change {self.encoder.ratio_key}, or set downsampling_ratio to {ratio}")
        if self.decoder is not None and self.decoder.soft_clip:
            message = "soft_clip has no effect: the audio of a diffusion autoencoder comes from its network"
            yield Problem(("decoder", "soft_clip"), message, "remove it", True)


def _misfit(path: tuple[str, ...], got: int, wanted: int, reason: str) -> Problem:
    name = ".".join(path)
    return Problem(path, f"{name} is {got}, but {reason}", f"set {name} to {wanted}", got)


class AudioAsLatents(nn.Module):
    """Stands where there is no encoder: the audio itself is what the bottleneck gets."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, audio: Tensor) -> Tensor:
        if audio.shape[1] != self.channels:
            got = f"latents have {self.channels} channels, the audio has {audio.shape[1]}"
            raise ValueError(f"this diffusion autoencoder has no encoder, and {got}: give it finished latents")
        return audio


class DiffusionAutoencoder(AudioAutoencoder):
    """Audio (B, C, T) -> latents (B, latent_dim, T / frame_ratio) -> audio, by sampling from noise beside the latents.

    An autoencoder whose `decoder`, if any, prepares the latents for `diffusion`, the network.
    Called as `model(x, t, latents)`, it predicts what its `objective` asks for, as in training.
    dist_shift: None, there is none. min_input_length: numbers of audio samples are multiples of it. min_samples: the least of them.
    """

    dist_shift: DistributionShift | None = None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        diffusion: Denoiser,
        *,
        objective: Objective,
        latent_dim: int,
        frame_ratio: int,
        sample_rate: int,
        frame_multiple: int = 1,
        min_samples: int = 1,
        io_channels: int = 2,
        bottleneck: Bottleneck | None = None,
        pretransform: Pretransform | None = None,
    ):
        samples = 1 if pretransform is None else pretransform.downsampling_ratio
        audio_channels = io_channels if pretransform is None else pretransform.io_channels
        super().__init__(
            encoder,
            decoder,
            latent_dim=latent_dim,
            downsampling_ratio=frame_ratio * samples,
            sample_rate=sample_rate,
            io_channels=io_channels,
            bottleneck=bottleneck,
            pretransform=pretransform,
            in_channels=audio_channels,
            out_channels=audio_channels,
        )
        self.diffusion = diffusion
        self.objective, self.frame_ratio = objective, frame_ratio
        self.min_input_length, self.min_samples = frame_multiple * samples, min_samples

    @property
    def diffusion_objective(self) -> str:
        """The objective's name in configs."""
        return self.objective.name

    def forward(self, x: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """The velocity (B, io_channels, T) at noisy frames x (B, io_channels, T), noise levels t (B,) and these latents."""
        return self.diffusion(x, t, input_concat_cond=self.beside(latents, x.shape[-1]))

    def beside(self, latents: Tensor, frames: int) -> Tensor:
        """What the network sees beside its input: latents (B, C, any length) through `decoder`, each repeated to `frames` in all."""
        return resize_signal(self.decoder(latents), frames)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        steps: int = DECODING_STEPS,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
        skip_bottleneck: bool = False,
        iterate_batch: bool = False,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Latents (B, latent_dim, T) -> audio (B, C, T * downsampling_ratio), sampled by the objective's default sampler.

        Args:
            steps: sampler steps.
            generator: of the noise to start from: one for the batch, one for each item, or None for the global one.
            callback: called with a `diffusion.samplers.Step` at each step.
            skip_bottleneck: they are behind the bottleneck's way back already.
            iterate_batch: one item at a time where the pretransform decodes: less memory.
            noise: (B, io_channels, T * frame_ratio) to start from; default: drawn.
        """
        if self.bottleneck is not None and not skip_bottleneck:
            latents = self.bottleneck.decode(latents)
        frames = latents.shape[-1] * self.frame_ratio
        cond = self.beside(latents, frames)
        field = make_field(partial(self.diffusion, input_concat_cond=cond), self.objective)
        noise = self._noise(latents, generator) if noise is None else noise
        ts = schedule(self.objective, steps, length=frames)
        decoded = find_sampler(None, self.objective).sample(field, noise, ts, generator=generator, callback=callback)
        if self.pretransform is None:
            return decoded
        return torch.cat([self.pretransform.decode(part) for part in decoded.split(1 if iterate_batch else len(decoded))])

    def decode_audio(
        self,
        latents: Tensor,
        *,
        chunked: bool = False,
        overlap: int = 32,
        chunk_size: int = 128,
        skip_bottleneck: bool = False,
        iterate_batch: bool = False,
        steps: int = DECODING_STEPS,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """`decode`; where `chunked`, in chunks as in `encode_audio`, out of one noise, so that neighbours agree on what they share."""
        decode = partial(
            self.decode,
            skip_bottleneck=skip_bottleneck,
            iterate_batch=iterate_batch,
            steps=steps,
            generator=generator,
            callback=callback,
        )
        if not chunked:
            return decode(latents)
        width, ratio = latents.shape[1], self.frame_ratio
        noise = self._noise(latents, generator).unflatten(2, (-1, ratio)).mT.flatten(1, 2)

        def decode_part(part: Tensor) -> Tensor:
            return decode(part[:, :width], noise=part[:, width:].unflatten(1, (-1, ratio)).mT.flatten(2))

        sizes = {"frame_in": 1, "frame_out": self.downsampling_ratio, "chunk_size": chunk_size, "overlap": overlap}
        return map_chunks(decode_part, torch.cat([latents, noise], dim=1), fade=self.downsampling_ratio if overlap > 1 else 0, **sizes)

    def _noise(self, latents: Tensor, generator: Generators) -> Tensor:
        """(B, io_channels, frames of the network) for latents (B, C, T)."""
        return noise_like(latents.new_empty(len(latents), self.io_channels, latents.shape[-1] * self.frame_ratio), generator)
