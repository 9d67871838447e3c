"""Audio from a trained diffusion model: from noise, or as a variation of existing audio.

Item i of seed s starts from the noise stream (s, i), drawn on the CPU: it is the same clip in every batch and on every
device, up to rounding. The global random generators are left as they were, and so is the model's training mode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.resample import resample
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.guidance import EVERYWHERE, Interval
from stable_audio_tools.diffusion.samplers import Callback, Field, Prediction, find_sampler, noise_like
from stable_audio_tools.diffusion.seeds import derive_seed, generator_for
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.conditioners.routing import as_condition
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion

log = logging.getLogger(__name__)

Metadata = Sequence[Mapping[str, Any]]
Conditions = Mapping[str, Condition]


def generate_diffusion_cond(
    model: ConditionedDiffusion,
    steps: int = 250,
    cfg_scale: float = 6.0,
    *,
    scale_phi: float | None = None,
    cfg_interval: Interval = EVERYWHERE,
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
        scale_phi: share, 0 to 1, of bringing the guided prediction back to the conditional one's standard deviation;
            default the network's own, which is 0 but for adp_cfg_1d.
        cfg_interval: noise levels (sigma) between which guidance acts.
        conditioning: metadata of each item, such as `{"prompt": "a bell", "seconds_total": 3}`; one entry is used for all items.
        conditioning_tensors: instead of `conditioning`, what `model.conditioner` made of it.
        negative_conditioning, negative_conditioning_tensors: what to guide away from; default nothing.
        batch_size: number of items; default as many as conditions.
        sample_size: audio samples of each item. The default is the peer's, 47.6 s at 44.1 kHz.
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
    sampler = find_sampler(sampler_type, model.objective, sampler_options)
    parameter = next(model.model.parameters())
    _check_ownership(model, parameter.device, sample_rate, device)
    if init_audio is None and init_noise_level != 1:
        raise ValueError(f"init_noise_level is {init_noise_level} but there is no init_audio to keep anything of")
    if sampler.cfgpp and cfg_scale == 1:
        raise ConfigError(f"sampler {sampler_type!r} follows the unconditional prediction, which cfg_scale 1 leaves out; use 0 to below 1")
    frames = _frames(model, sample_size)
    ts = schedule(model.objective, steps, length=frames, shift=model.dist_shift, sigma_max=init_noise_level)
    batch_size = _batch_size(batch_size, conditioning, conditioning_tensors)
    streams = _streams(seed, batch_size)

    with torch.no_grad(), evaluation_mode(model), isolated_generators(parameter.device, derive_seed(*streams[0])):
        conditions = _conditions(model, conditioning, conditioning_tensors, batch_size, "conditioning")
        negative = None
        if negative_conditioning is not None or negative_conditioning_tensors is not None:
            negative = _conditions(model, negative_conditioning, negative_conditioning_tensors, batch_size, "negative_conditioning")
        guidance = {"cfg_scale": cfg_scale, "negative_cond": negative, "cfg_interval": cfg_interval}
        guidance |= {"scale_phi": scale_phi, "rescale_cfg": True}
        field = _field(model, conditions, guidance, cfgpp=sampler.cfgpp)
        generators = [generator_for(*stream) for stream in streams]
        x = noise_like(parameter.new_empty(batch_size, model.io_channels, frames), generators)
        if init_audio is not None:
            x = model.objective.add_noise(_encoded(model, init_audio, frames, streams).to(x), x, ts[0])
        latents = sampler.function(field, x, ts, generator=generators, callback=callback, **sampler_options)
        if return_latents:
            return latents.float()
        return _decoded(model, latents)[..., :sample_size].float()


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


def _check_ownership(model: ConditionedDiffusion, place: torch.device, sample_rate: int | None, device: str | torch.device | None) -> None:
    """Rate and device are the model's; naming others is a mistake, not a wish that could be granted."""
    if sample_rate is not None and sample_rate != model.sample_rate:
        raise ValueError(f"sample_rate is {sample_rate} but the model's is {model.sample_rate}; leave it out, and resample the result")
    if device is not None and torch.device(device).type != place.type:
        raise ValueError(f"device is {device} but the model is on {place}; move it with model.to({str(device)!r})")


def _ratio(model: ConditionedDiffusion) -> int:
    return model.pretransform.downsampling_ratio if model.pretransform is not None else 1


def _frames(model: ConditionedDiffusion, sample_size: int) -> int:
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


def _repeated(given: Any, batch_size: int, name: str) -> Condition:
    """A condition with every part of it for `batch_size` items; a learned null is for any number."""
    condition = as_condition(given)
    count = condition.tensor.shape[0]
    if count not in (1, batch_size):
        raise ValueError(f"{name} has {count} items for a batch of {batch_size}; give one for each item, or one for all")
    parts = {name: getattr(condition, name) for name in ("tensor", "mask", "pooled")}
    return condition._replace(**{name: part.expand(batch_size, *part.shape[1:]) for name, part in parts.items() if part is not None})


def _field(model: ConditionedDiffusion, conditions: Conditions, guidance: Mapping[str, Any], *, cfgpp: bool) -> Field:
    """The guided model as samplers see it; for CFG++ with the noise of its unconditional half."""
    objective = model.objective

    def field(x: Tensor, t: Tensor) -> Prediction:
        info: dict[str, Any] | None = {} if cfgpp else None
        output = model(x, t, conditions, info=info, **guidance)
        unguided = output if info is None else info.get("uncond_output", output)
        return Prediction(output, objective.denoised(x, output, t), objective.noise(x, unguided, t))

    return field


def _encoded(model: ConditionedDiffusion, init_audio: tuple[int, Tensor], frames: int, streams: Sequence[tuple[int, int]]) -> Tensor:
    """(B, latent channels, frames) of the audio to vary; what an encoder draws comes from each item's own stream."""
    channels = model.pretransform.io_channels if model.pretransform is not None else model.io_channels
    clips = _fitted(init_audio, model.sample_rate, channels, frames * _ratio(model), len(streams))
    return torch.cat([_encoded_clip(model, clip[None], stream) for clip, stream in zip(clips, streams, strict=True)])


def _encoded_clip(model: ConditionedDiffusion, clip: Tensor, stream: tuple[int, int]) -> Tensor:
    parameter = next(model.model.parameters())
    clip = clip.to(parameter)
    if model.pretransform is None:
        return clip
    _seed_global(derive_seed(*stream), parameter.device)
    return model.pretransform.encode(clip)


def _fitted(init_audio: tuple[int, Tensor], sample_rate: int, channels: int, length: int, batch_size: int) -> Tensor:
    """(batch_size, channels, length) on the CPU from audio of another rate, channel count or length."""
    rate, audio = init_audio
    audio = audio[None] if audio.ndim == 2 else audio
    if audio.ndim != 3 or audio.shape[0] not in (1, batch_size):
        raise ValueError(f"init_audio has shape {tuple(audio.shape)}, expected (C, T), or (B, C, T) with B = 1 or {batch_size}")
    clips = torch.stack([to_channels(resample(clip.float().cpu(), rate, sample_rate), channels)[:, :length] for clip in audio])
    return F.pad(clips, (0, length - clips.shape[-1])).expand(batch_size, -1, -1)


def _decoded(model: ConditionedDiffusion, latents: Tensor) -> Tensor:
    return model.pretransform.decode(latents) if model.pretransform is not None else latents


def _seed_global(seed: int, device: torch.device) -> None:
    # Not torch.manual_seed, which would move the generators of every other GPU too.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
