"""One run of a sampler over a batch: what it starts from, on which noise levels, and its result as audio.

B batch, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.known import Known, Reference
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

    def encoded(self, audio: GivenAudio, name: str, *, frames: int | None = None) -> Tensor:
        """(B, latent channels, frames) of given audio; what an encoder draws comes from each item's own stream."""
        model = self.model
        channels = model.pretransform.io_channels if model.pretransform is not None else model.io_channels
        clips = conformed(audio, model.sample_rate, channels, name, batch_size=len(self.streams))
        clips = cut_or_padded(clips, (frames or self.frames) * samples_per_frame(model)).to(next(model.model.parameters()))
        if model.pretransform is None:
            return clips
        encode = partial(encode_audio, model.pretransform, sample_rate=model.sample_rate)
        return each_isolated(encode, clips, self.streams, clips.device)

    def known(self, audio: GivenAudio | None, mask: Tensor | None, references: Sequence[GivenAudio]) -> Known | None:
        """What the model is told beside its conditions; None: nothing.

        Args:
            audio: of which frames are kept. mask: (B, frames), 1 where they are. references: of as many kinds as the model has learned.

        Raises:
            ValueError: a clip is known as a whole.
        """
        model = self.model
        if (mask is None and not references) or not isinstance(model, ConditionedDiffusion):
            return None
        place = next(model.model.parameters()).device
        latents = self.empty() if audio is None else self.encoded(audio, "inpaint_audio")
        keep = torch.zeros(len(latents), self.frames) if mask is None else mask
        if bool((keep == 1).all(dim=1).any()):
            raise ValueError("all frames of a clip are kept: nothing is left to make")
        pairs = zip(references, model.told.references, strict=False)
        told = tuple(self._reference(given, scale, place) for given, scale in pairs)
        return Known(latents, (keep == 1).to(place), told).whole(model.model.frames_per_token)

    def checked(self, known: Known) -> Known:
        """What was made elsewhere; raises ValueError where it is of other clips."""
        expected = (len(self.streams), self.model.io_channels, self.frames)
        if known.latents.shape != expected:
            raise ValueError(f"known is of latents {tuple(known.latents.shape)}, and the clips are {expected}")
        return known

    def _reference(self, audio: GivenAudio, time_scale: float, place: torch.device) -> Reference:
        """As long as the audio is, up to a whole number of what the model makes as one."""
        rate, signal = audio
        samples = math.ceil(signal.shape[-1] * self.model.sample_rate / rate)
        latents = self.encoded(audio, "reference_audio", frames=_frames(self.model, samples))
        positions = torch.arange(latents.shape[-1], device=place)
        real = torch.ones(len(latents), latents.shape[-1], dtype=torch.bool, device=place)
        return Reference(latents, positions if time_scale == 1 else positions * time_scale, real)

    def run(self, field: Field, callback: Callback | None, *, return_latents: bool, known: Known | None = None) -> Tensor:
        """Sample along `field`; audio (B, C, sample_size), or latents (B, latent channels, frames), float32."""
        model, generators = self.model, [generator_for(*stream) for stream in self.streams]
        noise = noise_like(self.empty(), generators)
        data = self.empty() if self.start.audio is None else self.encoded(self.start.audio, "init_audio").to(noise)
        x = model.objective.add_noise(data, noise, self.ts[0])
        latents = self.sampler.sample(field, x, self.ts, generator=generators, callback=callback)
        latents = latents if known is None else known.told(latents)  # exactly, whatever the sampler has rounded
        if return_latents:
            return latents.float()
        if model.pretransform is None:
            return latents[..., : self.sample_size].float()
        decoded = decode_latents(model.pretransform, latents, model.sample_rate, self.streams, chunked=self.chunked_decode)
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
