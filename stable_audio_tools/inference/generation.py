"""Audio from a trained diffusion model: from noise, as a variation of existing audio, or where existing audio has a gap.

Item i of seed s starts from the noise stream (s, i), drawn on the CPU: it is the same clip in every batch and on every
device, up to rounding. The global random generators are left as they were, and so is the model's training mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.guidance import EVERYWHERE, Guidance, Interval
from stable_audio_tools.diffusion.known import Known
from stable_audio_tools.diffusion.samplers import Callback, make_field
from stable_audio_tools.models.inpainting import inpaint_conditions
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.models.unconditional_diffusion import UnconditionalDiffusion

from .conditions import Conditions, Metadata, batch_size_of, both_conditions, check_masks_given, guided_field
from .given_audio import GivenAudio
from .inpaint_masks import check_inpainting, check_references, frame_mask, inpaints, mask_of_seconds, sees_masks
from .isolation import evaluation_mode, isolated_generators, item_streams
from .job import DiffusionModel, Job, Start, check_ownership, samples_per_frame

__all__ = [
    "DiffusionModel",
    "evaluation_mode",
    "generate_diffusion_cond",
    "generate_diffusion_cond_inpaint",
    "generate_diffusion_uncond",
    "inpaints",
    "isolated_generators",
]


def generate_diffusion_cond(
    model: ConditionedDiffusion,
    steps: int = 250,
    cfg_scale: float = 6.0,
    conditioning: Metadata | None = None,
    conditioning_tensors: Conditions | None = None,
    negative_conditioning: Metadata | None = None,
    negative_conditioning_tensors: Conditions | None = None,
    batch_size: int | None = None,
    sample_size: int = 2_097_152,
    sample_rate: int | None = None,
    seed: int | Sequence[int] = -1,
    device: str | torch.device | None = None,
    init_audio: GivenAudio | None = None,
    init_noise_level: float = 1.0,
    return_latents: bool = False,
    *,
    reference_audio: Sequence[GivenAudio] = (),
    known: Known | None = None,
    scale_phi: float | None = None,
    cfg_interval: Interval = EVERYWHERE,
    apg_scale: float = 0.0,
    apg_momentum: float = 0.0,
    cfg_norm_threshold: float = 0.0,
    batch_cfg: bool = True,
    sampler_type: str | None = None,
    chunked_decode: bool | None = None,
    callback: Callback | None = None,
    **sampler_options: float,
) -> Tensor:
    """Generate a batch of audio.

    Args:
        steps: sampler steps, on the schedule that training and demos use (`diffusion.grids.schedule`).
        cfg_scale: classifier-free guidance; 1 is none.
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
        return_latents: leave the result in latent space.
        reference_audio: for a model that has learned to take references, one of each kind that it has learned, in their order.
        known: instead of `reference_audio`, what the model is told, as training prepares it.
        scale_phi, cfg_interval, apg_scale, apg_momentum, cfg_norm_threshold, batch_cfg: see `diffusion.guidance.Guidance`.
        sampler_type: default the objective's own.
        chunked_decode: True: decode in overlapping chunks, which takes less memory; False: in one pass; default: in chunks what is longer
            than a minute.
        callback: called with a `diffusion.samplers.Step` at each step.
        sampler_options: keyword arguments of the sampler, such as `eta` of v-ddim.

    Returns:
        (B, C, sample_size) float32 audio, or (B, latent channels, frames) latents.

    Raises:
        ConfigError: no such sampler, it does not fit the model's objective, or does not take an option; metadata that do not suffice;
            a length or start that the model's distribution shift has no schedule for.
        ValueError: the arguments do not fit each other or the model.
    """
    check_references(model, reference_audio)
    guidance = Guidance(cfg_scale, scale_phi, cfg_interval, apg_scale, apg_momentum, cfg_norm_threshold, batch_cfg)
    start = Start(init_audio, init_noise_level)
    check_ownership(model, sample_rate, device)
    batch_size = batch_size_of(batch_size, conditioning, conditioning_tensors)
    job = Job.of(model, steps, sample_size, item_streams(seed, batch_size), start, sampler_type, sampler_options, chunked_decode)
    job.check_guidance(cfg_scale)
    with job.isolated():
        conditions, negative = both_conditions(
            model, batch_size, conditioning, conditioning_tensors, negative_conditioning, negative_conditioning_tensors
        )
        check_masks_given(model, conditions)
        known = job.known(None, None, reference_audio) if known is None else job.checked(known)
        field = guided_field(model, conditions, negative, guidance, cfgpp=job.sampler.cfgpp, known=known)
        return job.run(field, callback, return_latents=return_latents, known=known)


def generate_diffusion_cond_inpaint(
    model: ConditionedDiffusion,
    steps: int = 250,
    cfg_scale: float = 6.0,
    conditioning: Metadata | None = None,
    conditioning_tensors: Conditions | None = None,
    negative_conditioning: Metadata | None = None,
    negative_conditioning_tensors: Conditions | None = None,
    batch_size: int | None = None,
    sample_size: int = 2_097_152,
    seed: int | Sequence[int] = -1,
    device: str | torch.device | None = None,
    init_audio: GivenAudio | None = None,
    init_noise_level: float = 1.0,
    inpaint_audio: GivenAudio | None = None,
    inpaint_mask: Tensor | None = None,
    return_latents: bool = False,
    *,
    sample_rate: int | None = None,
    regenerate_s: Sequence[tuple[float, float]] | None = None,
    reference_audio: Sequence[GivenAudio] = (),
    scale_phi: float | None = None,
    cfg_interval: Interval = EVERYWHERE,
    apg_scale: float = 0.0,
    apg_momentum: float = 0.0,
    cfg_norm_threshold: float = 0.0,
    batch_cfg: bool = True,
    sampler_type: str | None = None,
    chunked_decode: bool | None = None,
    callback: Callback | None = None,
    **sampler_options: float,
) -> Tensor:
    """Generate a batch of audio of which some is given.

    A model that sees what is given as channels makes all of it anew, also the given part, which it has learned to repeat. One that
    was trained with `training.conditions` makes the rest alone, and gives what is given back as it is, up to encoding.
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
    check_inpainting(model, inpaint_audio, inpaint_mask, regenerate_s)
    check_references(model, reference_audio)
    guidance = Guidance(cfg_scale, scale_phi, cfg_interval, apg_scale, apg_momentum, cfg_norm_threshold, batch_cfg)
    start = Start(init_audio, init_noise_level)
    check_ownership(model, sample_rate, device)
    batch_size = batch_size_of(batch_size, conditioning, conditioning_tensors)
    job = Job.of(model, steps, sample_size, item_streams(seed, batch_size), start, sampler_type, sampler_options, chunked_decode)
    job.check_guidance(cfg_scale)
    if regenerate_s is not None:
        inpaint_mask = mask_of_seconds(regenerate_s, job.frames, model.sample_rate / samples_per_frame(model))
    mask = frame_mask(inpaint_mask, job, sample_size) if inpaint_mask is not None else torch.zeros(batch_size, job.frames)
    with job.isolated():
        conditions, negative = both_conditions(
            model, batch_size, conditioning, conditioning_tensors, negative_conditioning, negative_conditioning_tensors
        )
        if sees_masks(model):
            latents = job.empty() if inpaint_audio is None else job.encoded(inpaint_audio, "inpaint_audio")
            conditions |= inpaint_conditions(latents, mask.to(latents.device))
            known = job.known(None, None, reference_audio)
        else:
            known = job.known(inpaint_audio, mask, reference_audio)
        field = guided_field(model, conditions, negative, guidance, cfgpp=job.sampler.cfgpp, known=known)
        return job.run(field, callback, return_latents=return_latents, known=known)


def generate_diffusion_uncond(
    model: UnconditionalDiffusion,
    steps: int = 250,
    batch_size: int = 1,
    sample_size: int | None = None,
    seed: int | Sequence[int] = -1,
    device: str | torch.device | None = None,
    init_audio: GivenAudio | None = None,
    init_noise_level: float = 1.0,
    return_latents: bool = False,
    *,
    sample_rate: int | None = None,
    sampler_type: str | None = None,
    chunked_decode: bool | None = None,
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
    start = Start(init_audio, init_noise_level)
    check_ownership(model, sample_rate, device)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    sample_size = model.sample_size if sample_size is None else sample_size
    job = Job.of(model, steps, sample_size, item_streams(seed, batch_size), start, sampler_type, sampler_options, chunked_decode)
    if job.sampler.cfgpp:
        raise ConfigError(f"sampler {sampler_type!r} follows guidance, and a model without conditions has none")
    with job.isolated():
        return job.run(make_field(model, model.objective), callback, return_latents=return_latents)
