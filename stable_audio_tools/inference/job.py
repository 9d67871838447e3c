"""One run of a sampler over a batch: what it starts from, on which noise levels, and its result as audio.

B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.samplers import Callback, ChosenSampler, Field, find_sampler, noise_like
from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.models.unconditional_diffusion import UnconditionalDiffusion

from .decoding import check_chunkable, decode_latents, encode_audio
from .given_audio import GivenAudio, conformed, cut_or_padded
from .isolation import Stream, each_isolated, isolated

DiffusionModel = ConditionedDiffusion | UnconditionalDiffusion


@dataclass(frozen=True)
class Start:
    """What sampling starts from: noise, or audio with noise of this level; see `generate_diffusion_cond`."""

    audio: GivenAudio | None
    noise_level: float

    def __post_init__(self) -> None:
        if self.audio is None and self.noise_level != 1:
            raise ValueError(f"init_noise_level is {self.noise_level} but there is no init_audio to keep anything of")


@dataclass(frozen=True)
class Job:
    """A batch to generate, its arguments checked.

    frames: latent frames that hold `sample_size` samples. ts: noise levels. streams: the random stream of each item.
    chunked_decode: see `decoding.decode_latents`.
    """

    model: DiffusionModel
    sampler: ChosenSampler
    sample_size: int
    frames: int
    ts: Tensor
    streams: Sequence[Stream]
    start: Start
    chunked_decode: bool | None

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        steps: int,
        sample_size: int,
        streams: Sequence[Stream],
        start: Start,
        sampler_type: str | None,
        options: Mapping[str, float],
        chunked_decode: bool | None,
    ) -> Self:
        check_chunkable(model.pretransform, chunked_decode)
        sampler = find_sampler(sampler_type, model.objective, options)
        frames = _frames(model, sample_size)
        ts = sampler.schedule(steps, length=frames, shift=model.dist_shift, noise_level=start.noise_level)
        return cls(model, sampler, sample_size, frames, ts, streams, start, chunked_decode)

    def check_guidance(self, scale: float) -> None:
        if self.sampler.cfgpp and scale == 1:
            name = self.sampler.name
            raise ConfigError(f"sampler {name!r} follows the unconditional prediction, which cfg_scale 1 leaves out; use 0 to below 1")

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Inside, the model is in eval mode, no graph is made, and the global generators are the job's own."""
        with isolated(self.model, self.streams[0]):
            yield

    def empty(self) -> Tensor:
        """(B, latent channels, frames) zeros."""
        parameter = next(self.model.model.parameters())
        return parameter.new_zeros(len(self.streams), self.model.io_channels, self.frames)

    def encoded(self, audio: GivenAudio, name: str) -> Tensor:
        """(B, latent channels, frames) of given audio; what an encoder draws comes from each item's own stream."""
        model = self.model
        channels = model.pretransform.io_channels if model.pretransform is not None else model.io_channels
        clips = conformed(audio, model.sample_rate, channels, name, batch_size=len(self.streams))
        clips = cut_or_padded(clips, self.frames * samples_per_frame(model)).to(next(model.model.parameters()))
        if model.pretransform is None:
            return clips
        encode = partial(encode_audio, model.pretransform, sample_rate=model.sample_rate)
        return each_isolated(encode, clips, self.streams, clips.device)

    def run(self, field: Field, callback: Callback | None, *, return_latents: bool) -> Tensor:
        """Sample along `field`; audio (B, C, sample_size), or latents (B, latent channels, frames), float32."""
        model, generators = self.model, [generator_for(*stream) for stream in self.streams]
        noise = noise_like(self.empty(), generators)
        data = self.empty() if self.start.audio is None else self.encoded(self.start.audio, "init_audio").to(noise)
        x = model.objective.add_noise(data, noise, self.ts[0])
        latents = self.sampler.sample(field, x, self.ts, generator=generators, callback=callback)
        if return_latents:
            return latents.float()
        if model.pretransform is None:
            return latents[..., : self.sample_size].float()
        decoded = decode_latents(model.pretransform, latents, model.sample_rate, chunked=self.chunked_decode)
        return decoded[..., : self.sample_size].float()


def check_ownership(model: DiffusionModel, sample_rate: int | None, device: str | torch.device | None) -> None:
    """Rate and device are the model's; naming others is a mistake, not a wish that could be granted."""
    if sample_rate is not None and sample_rate != model.sample_rate:
        raise ValueError(f"sample_rate is {sample_rate} but the model's is {model.sample_rate}; leave it out, and resample the result")
    place = next(model.model.parameters()).device
    if device is not None and torch.device(device).type != place.type:
        raise ValueError(f"device is {device} but the model is on {place}; move it with model.to({str(device)!r})")


def samples_per_frame(model: DiffusionModel) -> int:
    return model.pretransform.downsampling_ratio if model.pretransform is not None else 1


def _frames(model: DiffusionModel, sample_size: int) -> int:
    """Latent frames that hold `sample_size` samples, a whole number of the model's patches."""
    if sample_size < 1:
        raise ValueError(f"sample_size must be at least 1, got {sample_size}")
    patches = -(-sample_size // model.min_input_length)
    return patches * model.min_input_length // samples_per_frame(model)
