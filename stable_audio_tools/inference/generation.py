"""Audio from a trained diffusion model: from noise, as a variation of existing audio, or where existing audio has a gap.

Item i of seed s starts from the noise stream (s, i), drawn on the CPU: it is the same clip in every batch and on every
device, up to rounding. The global random generators are left as they were, and so is the model's training mode.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.resample import resample
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.guidance import EVERYWHERE, Guidance, Interval
from stable_audio_tools.diffusion.samplers import Callback, Field, Prediction, Sampler, find_sampler, make_field, noise_like
from stable_audio_tools.diffusion.seeds import derive_seed, generator_for
from stable_audio_tools.models.conditioners import INPAINT_IDS
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.conditioners.routing import as_condition
from stable_audio_tools.models.inpainting import inpaint_conditions
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.models.unconditional_diffusion import UnconditionalDiffusion

log = logging.getLogger(__name__)

DiffusionModel = ConditionedDiffusion | UnconditionalDiffusion
Metadata = Sequence[Mapping[str, Any]]
Conditions = Mapping[str, Condition]


def generate_diffusion_cond(
    model: ConditionedDiffusion,
    steps: int = 250,
    cfg_scale: float = 6.0,
    *,
    scale_phi: float | None = None,
    cfg_interval: Interval = EVERYWHERE,
    apg_scale: float = 0.0,
    apg_momentum: float = 0.0,
    cfg_norm_threshold: float = 0.0,
    batch_cfg: bool = True,
    conditioning: Metadata | None = None,
    conditioning_tensors: Conditions | None = None,
    negative_conditioning: Metadata | None = None,
    negative_conditioning_tensors: Conditions | None = None,
    batch_size: int | None = None,
    sample_size: int = 2_097_152,
    sample_rate: int | None = None,
    seed: int | Sequence[int] = -1,
    device: str | torch.device | None = None,
    init_audio: tuple[int, Tensor] | None = None,
    init_noise_level: float = 1.0,
    sampler_type: str | None = None,
    return_latents: bool = False,
    callback: Callback | None = None,
    **sampler_options: float,
) -> Tensor:
    """Generate a batch of audio.

    Args:
        steps: sampler steps, on the schedule that training and demos use (`diffusion.grids.schedule`).
        cfg_scale: classifier-free guidance; 1 is none.
        scale_phi, cfg_interval, apg_scale, apg_momentum, cfg_norm_threshold, batch_cfg: see `diffusion.guidance.Guidance`.
        conditioning: metadata of each item, such as `{"prompt": "a bell", "seconds_total": 3}`; one entry is used for all items.
        conditioning_tensors: instead of `conditioning`, what `model.conditioner` made of it.
        negative_conditioning, negative_conditioning_tensors: what to guide away from; default nothing.
        batch_size: number of items; default as many as conditions.
        sample_size: audio samples of each item. The default is upstream's, 47.6 s at 44.1 kHz.
        sample_rate: Hz, if given it must be the model's.
        seed: of the noise, -1 for a fresh one, which is logged. A sequence gives each item its own seed, as if it were made alone.
        device: if given it must be where the model is.
        init_audio: (sample rate in Hz, audio (C, T) or (B, C, T)) to vary. It is resampled, cropped and padded as needed.
        init_noise_level: how far to go back towards noise, above 0 (the audio itself) to 1 (nothing of it is left).
        sampler_type: default the objective's own.
        return_latents: leave the result in latent space.
        callback: called with a `diffusion.samplers.Step` at each step.
        sampler_options: keyword arguments of the sampler, such as `eta` of v-ddim.

    Returns:
        (B, C, sample_size) float32 audio, or (B, latent channels, frames) latents.

    Raises:
        ConfigError: no such sampler, it does not fit the model's objective, or does not take an option; metadata that do not suffice;
            a length or start that the model's distribution shift has no schedule for.
        ValueError: the arguments do not fit each other or the model.
    """
    guidance = Guidance(cfg_scale, scale_phi, cfg_interval, apg_scale, apg_momentum, cfg_norm_threshold, batch_cfg)
    start = _Start(init_audio, init_noise_level)
    _check_ownership(model, sample_rate, device)
    batch_size = _batch_size(batch_size, conditioning, conditioning_tensors)
    job = _Job.of(model, steps, sample_size, _streams(seed, batch_size), start, sampler_type, sampler_options)
    job.check_guidance(cfg_scale)
    with job.isolated():
        conditions, negative = _both_conditions(
            model, batch_size, conditioning, conditioning_tensors, negative_conditioning, negative_conditioning_tensors
        )
        _check_masks_given(model, conditions)
        field = _guided_field(model, conditions, negative, guidance, cfgpp=job.sampler.cfgpp)
        return job.run(field, callback, return_latents=return_latents)


def generate_diffusion_cond_inpaint(
    model: ConditionedDiffusion,
    steps: int = 250,
    cfg_scale: float = 6.0,
    *,
    scale_phi: float | None = None,
    cfg_interval: Interval = EVERYWHERE,
    apg_scale: float = 0.0,
    apg_momentum: float = 0.0,
    cfg_norm_threshold: float = 0.0,
    batch_cfg: bool = True,
    conditioning: Metadata | None = None,
    conditioning_tensors: Conditions | None = None,
    negative_conditioning: Metadata | None = None,
    negative_conditioning_tensors: Conditions | None = None,
    batch_size: int | None = None,
    sample_size: int = 2_097_152,
    sample_rate: int | None = None,
    seed: int | Sequence[int] = -1,
    device: str | torch.device | None = None,
    init_audio: tuple[int, Tensor] | None = None,
    init_noise_level: float = 1.0,
    inpaint_audio: tuple[int, Tensor] | None = None,
    inpaint_mask: Tensor | None = None,
    regenerate_s: Sequence[tuple[float, float]] | None = None,
    sampler_type: str | None = None,
    return_latents: bool = False,
    callback: Callback | None = None,
    **sampler_options: float,
) -> Tensor:
    """Generate a batch of audio of which some is given.

    The model is told what is given and makes all of it anew, also the given part, which it has learned to repeat.
    Arguments that are not listed here are those of `generate_diffusion_cond`.

    Args:
        inpaint_audio: (sample rate in Hz, audio (C, T) or (B, C, T)) of which parts are kept; absent: everything is made. It is
            resampled, cropped and padded with silence as needed.
        inpaint_mask: 1 where `inpaint_audio` is kept, 0 where audio is made: (T,), (1, T) or (B, T), in samples or in latent frames.
        regenerate_s: instead of `inpaint_mask`, (start, end) in seconds of each part to make; a latent frame that a part reaches
            into is made.

    Returns:
        (B, C, sample_size) float32 audio, or (B, latent channels, frames) latents.

    Raises:
        ConfigError, ValueError: as `generate_diffusion_cond`; the model does not inpaint, or audio and mask do not fit each other.
    """
    _check_inpainting(model, inpaint_audio, inpaint_mask, regenerate_s)
    guidance = Guidance(cfg_scale, scale_phi, cfg_interval, apg_scale, apg_momentum, cfg_norm_threshold, batch_cfg)
    start = _Start(init_audio, init_noise_level)
    _check_ownership(model, sample_rate, device)
    batch_size = _batch_size(batch_size, conditioning, conditioning_tensors)
    job = _Job.of(model, steps, sample_size, _streams(seed, batch_size), start, sampler_type, sampler_options)
    job.check_guidance(cfg_scale)
    if regenerate_s is not None:
        inpaint_mask = _mask_of_seconds(regenerate_s, job.frames, model.sample_rate / _ratio(model))
    mask = _frame_mask(inpaint_mask, job, sample_size) if inpaint_mask is not None else torch.zeros(batch_size, job.frames)
    with job.isolated():
        conditions, negative = _both_conditions(
            model, batch_size, conditioning, conditioning_tensors, negative_conditioning, negative_conditioning_tensors
        )
        latents = job.empty() if inpaint_audio is None else job.encoded(inpaint_audio, "inpaint_audio")
        conditions |= inpaint_conditions(latents, mask.to(latents.device))
        field = _guided_field(model, conditions, negative, guidance, cfgpp=job.sampler.cfgpp)
        return job.run(field, callback, return_latents=return_latents)


def generate_diffusion_uncond(
    model: UnconditionalDiffusion,
    steps: int = 250,
    batch_size: int = 1,
    sample_size: int | None = None,
    seed: int | Sequence[int] = -1,
    device: str | torch.device | None = None,
    init_audio: tuple[int, Tensor] | None = None,
    init_noise_level: float = 1.0,
    return_latents: bool = False,
    *,
    sample_rate: int | None = None,
    sampler_type: str | None = None,
    callback: Callback | None = None,
    **sampler_options: float,
) -> Tensor:
    """Generate a batch of audio with a model that has no conditions.

    Arguments that are not listed here are those of `generate_diffusion_cond`.

    Args:
        sample_size: audio samples of each item; default: of the model's training clips.

    Returns:
        (batch_size, C, sample_size) float32 audio, or (batch_size, latent channels, frames) latents.

    Raises:
        ConfigError, ValueError: as `generate_diffusion_cond`.
    """
    start = _Start(init_audio, init_noise_level)
    _check_ownership(model, sample_rate, device)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    sample_size = model.sample_size if sample_size is None else sample_size
    job = _Job.of(model, steps, sample_size, _streams(seed, batch_size), start, sampler_type, sampler_options)
    if job.sampler.cfgpp:
        raise ConfigError(f"sampler {sampler_type!r} follows guidance, and a model without conditions has none")
    with job.isolated():
        return job.run(make_field(model, model.objective), callback, return_latents=return_latents)


@dataclass(frozen=True)
class _Start:
    """What sampling starts from: noise, or audio with noise of this level; see `generate_diffusion_cond`."""

    audio: tuple[int, Tensor] | None
    noise_level: float

    def __post_init__(self) -> None:
        if self.audio is None and self.noise_level != 1:
            raise ValueError(f"init_noise_level is {self.noise_level} but there is no init_audio to keep anything of")


@dataclass(frozen=True)
class _Job:
    """A batch to generate, its arguments checked.

    frames: latent frames that hold `sample_size` samples. ts: noise levels. streams: the random stream of each item.
    """

    model: DiffusionModel
    sampler_name: str | None
    sampler: Sampler
    options: Mapping[str, float]
    sample_size: int
    frames: int
    ts: Tensor
    streams: Sequence[tuple[int, int]]
    start: _Start

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        steps: int,
        sample_size: int,
        streams: Sequence[tuple[int, int]],
        start: _Start,
        sampler_type: str | None,
        options: Mapping[str, float],
    ) -> Self:
        sampler = find_sampler(sampler_type, model.objective, dict(options))
        frames = _frames(model, sample_size)
        ts = schedule(model.objective, steps, length=frames, shift=model.dist_shift, sigma_max=start.noise_level)
        return cls(model, sampler_type, sampler, options, sample_size, frames, ts, streams, start)

    def check_guidance(self, scale: float) -> None:
        if self.sampler.cfgpp and scale == 1:
            name = self.sampler_name
            raise ConfigError(f"sampler {name!r} follows the unconditional prediction, which cfg_scale 1 leaves out; use 0 to below 1")

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Inside, the model is in eval mode, no graph is made, and the global generators are the job's own."""
        place = next(self.model.model.parameters()).device
        with torch.no_grad(), evaluation_mode(self.model), isolated_generators(place, derive_seed(*self.streams[0])):
            yield

    def empty(self) -> Tensor:
        """(B, latent channels, frames) zeros."""
        parameter = next(self.model.model.parameters())
        return parameter.new_zeros(len(self.streams), self.model.io_channels, self.frames)

    def encoded(self, audio: tuple[int, Tensor], name: str) -> Tensor:
        """(B, latent channels, frames) of given audio; what an encoder draws comes from each item's own stream."""
        model = self.model
        channels = model.pretransform.io_channels if model.pretransform is not None else model.io_channels
        clips = _fitted(audio, model.sample_rate, channels, self.frames * _ratio(model), len(self.streams), name)
        return torch.cat([_encoded_clip(model, clip[None], stream) for clip, stream in zip(clips, self.streams, strict=True)])

    def run(self, field: Field, callback: Callback | None, *, return_latents: bool) -> Tensor:
        """Sample along `field`; audio (B, C, sample_size), or latents (B, latent channels, frames), float32."""
        model, generators = self.model, [generator_for(*stream) for stream in self.streams]
        x = noise_like(self.empty(), generators)
        if self.start.audio is not None:
            x = model.objective.add_noise(self.encoded(self.start.audio, "init_audio").to(x), x, self.ts[0])
        latents = self.sampler.function(field, x, self.ts, generator=generators, callback=callback, **self.options)
        if return_latents:
            return latents.float()
        decoded = model.pretransform.decode(latents) if model.pretransform is not None else latents
        return decoded[..., : self.sample_size].float()


def inpaints(model: nn.Module) -> bool:
    """Whether a model is told which audio is given, so that `generate_diffusion_cond_inpaint` is for it."""
    return isinstance(model, ConditionedDiffusion) and not set(INPAINT_IDS).isdisjoint(model.routes.input_concat)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in eval mode, and give each its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def isolated_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, the global generators of the CPU and of `device` start from `seed`; outside they have not moved."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _seed_global(seed, device)
        yield


def _check_ownership(model: DiffusionModel, sample_rate: int | None, device: str | torch.device | None) -> None:
    """Rate and device are the model's; naming others is a mistake, not a wish that could be granted."""
    if sample_rate is not None and sample_rate != model.sample_rate:
        raise ValueError(f"sample_rate is {sample_rate} but the model's is {model.sample_rate}; leave it out, and resample the result")
    place = next(model.model.parameters()).device
    if device is not None and torch.device(device).type != place.type:
        raise ValueError(f"device is {device} but the model is on {place}; move it with model.to({str(device)!r})")


def _check_inpainting(
    model: ConditionedDiffusion, audio: tuple[int, Tensor] | None, mask: Tensor | None, seconds: Sequence[tuple[float, float]] | None
) -> None:
    if not inpaints(model):
        raise ValueError(f"the model does not inpaint: it takes neither {' nor '.join(INPAINT_IDS)}; use generate_diffusion_cond")
    if mask is not None and seconds is not None:
        raise ValueError("give either inpaint_mask or regenerate_s, not both")
    if audio is None and (mask is not None or seconds is not None):
        name = "inpaint_mask" if mask is not None else "regenerate_s"
        raise ValueError(f"{name} says which audio is kept, but there is no inpaint_audio")
    if audio is not None and mask is None and seconds is None:
        raise ValueError("inpaint_audio needs inpaint_mask or regenerate_s, which say what is kept of it")


def _check_masks_given(model: ConditionedDiffusion, conditions: Conditions) -> None:
    if missing := [name for name in INPAINT_IDS if name in model.routes.input_concat and name not in conditions]:
        raise ValueError(f"the model inpaints, and nothing says what is given ({', '.join(missing)}): use generate_diffusion_cond_inpaint")


def _ratio(model: DiffusionModel) -> int:
    return model.pretransform.downsampling_ratio if model.pretransform is not None else 1


def _frames(model: DiffusionModel, sample_size: int) -> int:
    """Latent frames that hold `sample_size` samples, a whole number of the model's patches."""
    if sample_size < 1:
        raise ValueError(f"sample_size must be at least 1, got {sample_size}")
    patches = -(-sample_size // model.min_input_length)
    return patches * model.min_input_length // _ratio(model)


def _batch_size(asked: int | None, metadata: Metadata | None, tensors: Conditions | None) -> int:
    if (metadata is None) == (tensors is None):
        raise ValueError("give either conditioning or conditioning_tensors")
    count = len(metadata) if metadata is not None else next(iter(tensors.values())).tensor.shape[0] if tensors else 1
    batch_size = count if asked is None else asked
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def _streams(seed: int | Sequence[int], batch_size: int) -> list[tuple[int, int]]:
    """The random stream of each item."""
    if not isinstance(seed, int):
        if len(seed) != batch_size:
            raise ValueError(f"{len(seed)} seeds for {batch_size} items; give one for each")
        return [(each, 0) for each in seed]
    if seed == -1:
        seed = torch.Generator().seed() & 0x7FFFFFFF
        log.info("seed %d", seed)
    return [(seed, index) for index in range(batch_size)]


def _conditions(
    model: ConditionedDiffusion, metadata: Metadata | None, tensors: Conditions | None, batch_size: int, name: str
) -> dict[str, Condition]:
    """One condition of each id for every item."""
    if metadata is not None and tensors is not None:
        raise ValueError(f"give either {name} or {name}_tensors, not both")
    if tensors is not None:
        return {key: _repeated(condition, batch_size, f"{name}_tensors[{key!r}]") for key, condition in tensors.items()}
    assert metadata is not None
    if len(metadata) not in (1, batch_size):
        raise ValueError(f"{name} has {len(metadata)} entries for a batch of {batch_size}; give one for each item, or one for all")
    return model.conditioner(list(metadata) * (batch_size // len(metadata)), next(model.model.parameters()).device)


def _both_conditions(
    model: ConditionedDiffusion,
    batch_size: int,
    metadata: Metadata | None,
    tensors: Conditions | None,
    negative_metadata: Metadata | None,
    negative_tensors: Conditions | None,
) -> tuple[dict[str, Condition], dict[str, Condition] | None]:
    """The conditions of every item, and those to guide away from, if any."""
    conditions = _conditions(model, metadata, tensors, batch_size, "conditioning")
    if negative_metadata is None and negative_tensors is None:
        return conditions, None
    return conditions, _conditions(model, negative_metadata, negative_tensors, batch_size, "negative_conditioning")


def _repeated(given: Any, batch_size: int, name: str) -> Condition:
    """A condition with every part of it for `batch_size` items; a learned null is for any number."""
    condition = as_condition(given)
    count = condition.tensor.shape[0]
    if count not in (1, batch_size):
        raise ValueError(f"{name} has {count} items for a batch of {batch_size}; give one for each item, or one for all")
    parts = {name: getattr(condition, name) for name in ("tensor", "mask", "pooled")}
    return condition._replace(**{name: part.expand(batch_size, *part.shape[1:]) for name, part in parts.items() if part is not None})


def _guided_field(
    model: ConditionedDiffusion, conditions: Conditions, negative: Conditions | None, guidance: Guidance, *, cfgpp: bool
) -> Field:
    """The guided model as samplers see it; for CFG++ with the noise of its unconditional half."""
    objective, options = model.objective, guidance.for_run()

    def field(x: Tensor, t: Tensor) -> Prediction:
        info: dict[str, Any] | None = {} if cfgpp else None
        output = model(x, t, conditions, negative_cond=negative, info=info, rescale_cfg=True, **options)
        unguided = output if info is None else info.get("uncond_output", output)
        return Prediction(output, objective.denoised(x, output, t), objective.noise(x, unguided, t))

    return field


def _encoded_clip(model: DiffusionModel, clip: Tensor, stream: tuple[int, int]) -> Tensor:
    parameter = next(model.model.parameters())
    clip = clip.to(parameter)
    if model.pretransform is None:
        return clip
    _seed_global(derive_seed(*stream), parameter.device)
    return model.pretransform.encode(clip)


def _fitted(given: tuple[int, Tensor], sample_rate: int, channels: int, length: int, batch_size: int, name: str) -> Tensor:
    """(batch_size, channels, length) on the CPU from audio of another rate, channel count or length; `name` is for messages."""
    rate, audio = given
    audio = audio[None] if audio.ndim == 2 else audio
    if audio.ndim != 3 or audio.shape[0] not in (1, batch_size):
        raise ValueError(f"{name} has shape {tuple(audio.shape)}, expected (C, T), or (B, C, T) with B = 1 or {batch_size}")
    clips = torch.stack([to_channels(resample(clip.float().cpu(), rate, sample_rate), channels)[:, :length] for clip in audio])
    return F.pad(clips, (0, length - clips.shape[-1])).expand(batch_size, -1, -1)


def _frame_mask(mask: Tensor, job: _Job, sample_size: int) -> Tensor:
    """(B, frames) from a mask of samples, of which each frame takes its first, or of frames.

    Raises:
        ValueError: its shape is neither, or it holds other values than 0 to 1.
    """
    items, ratio = len(job.streams), _ratio(job.model)
    mask = (mask[None] if mask.ndim == 1 else mask).float()
    if mask.ndim != 2 or mask.shape[0] not in (1, items) or mask.shape[1] not in (sample_size, job.frames * ratio, job.frames):
        lengths = " or ".join(str(length) for length in dict.fromkeys((sample_size, job.frames)))
        raise ValueError(f"inpaint_mask has shape {tuple(mask.shape)}, expected (T,) or (B, T) with T = {lengths} and B = 1 or {items}")
    if bool(((mask < 0) | (mask > 1)).any()):
        raise ValueError("inpaint_mask holds values outside 0 to 1; 1 keeps audio, 0 makes it anew")
    if mask.shape[1] != job.frames:
        mask = F.pad(mask, (0, job.frames * ratio - mask.shape[1]))[:, ::ratio]
    return mask.expand(items, -1)


def _mask_of_seconds(parts: Sequence[tuple[float, float]], frames: int, frame_rate: float) -> Tensor:
    """(1, frames), 0 in every frame that one of the parts, in seconds, reaches into.

    Raises:
        ValueError: a part is empty, negative, or beyond the end.
    """
    mask = torch.ones(1, frames)
    for start, end in parts:
        if not 0 <= start < end or start * frame_rate >= frames:
            raise ValueError(f"regenerate_s has {start:g} to {end:g}; a part begins before it ends, within 0 to {frames / frame_rate:g} s")
        mask[:, math.floor(start * frame_rate) : math.ceil(end * frame_rate)] = 0
    return mask


def _seed_global(seed: int, device: torch.device) -> None:
    # Not torch.manual_seed, which would move the generators of every other GPU too.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
