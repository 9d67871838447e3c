"""Which frames of a clip are kept and which are made, by a mask or by seconds.

B batch, T audio samples or latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.models.conditioners import INPAINT_IDS
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion

from .given_audio import GivenAudio
from .job import Job, samples_per_frame


def inpaints(model: nn.Module) -> bool:
    """Whether a model is told which audio is given, so that `generate_diffusion_cond_inpaint` is for it."""
    return isinstance(model, ConditionedDiffusion) and (sees_masks(model) or model.told.frames)


def sees_masks(model: ConditionedDiffusion) -> bool:
    """Whether a model sees what is given as channels beside its input, and makes that again, too."""
    return not set(INPAINT_IDS).isdisjoint(model.routes.input_concat)


def check_inpainting(
    model: ConditionedDiffusion, audio: GivenAudio | None, mask: Tensor | None, seconds: Sequence[tuple[float, float]] | None
) -> None:
    if not inpaints(model):
        lacks = f"it takes neither {' nor '.join(INPAINT_IDS)}, and was not trained with conditions that make frames known"
        raise ValueError(f"the model does not inpaint: {lacks}; use generate_diffusion_cond")
    if mask is not None and seconds is not None:
        raise ValueError("give either inpaint_mask or regenerate_s, not both")
    if audio is None and (mask is not None or seconds is not None):
        name = "inpaint_mask" if mask is not None else "regenerate_s"
        raise ValueError(f"{name} says which audio is kept, but there is no inpaint_audio")
    if audio is not None and mask is None and seconds is None:
        raise ValueError("inpaint_audio needs inpaint_mask or regenerate_s, which say what is kept of it")


def check_references(model: ConditionedDiffusion, references: Sequence[GivenAudio]) -> None:
    learned = len(model.told.references)
    if len(references) > learned:
        what = f"it has learned {learned}" if learned else "it was not trained with a condition of type reference"
        raise ValueError(f"the model is given {len(references)} references, and {what}")


def frame_mask(mask: Tensor, job: Job, sample_size: int) -> Tensor:
    """(B, frames) from a mask of samples, of which each frame takes its first, or of frames.

    Raises:
        ValueError: its shape is neither, or it holds other values than 0 to 1.
    """
    items, ratio = len(job.streams), samples_per_frame(job.model)
    mask = (mask[None] if mask.ndim == 1 else mask).float()
    if mask.ndim != 2 or mask.shape[0] not in (1, items) or mask.shape[1] not in (sample_size, job.frames * ratio, job.frames):
        lengths = " or ".join(str(length) for length in dict.fromkeys((sample_size, job.frames)))
        raise ValueError(f"inpaint_mask has shape {tuple(mask.shape)}, expected (T,) or (B, T) with T = {lengths} and B = 1 or {items}")
    if bool(((mask < 0) | (mask > 1)).any()):
        raise ValueError("inpaint_mask holds values outside 0 to 1; 1 keeps audio, 0 makes it anew")
    if mask.shape[1] != job.frames:
        mask = F.pad(mask, (0, job.frames * ratio - mask.shape[1]))[:, ::ratio]
    return mask.expand(items, -1)


def mask_of_seconds(parts: Sequence[tuple[float, float]], frames: int, frame_rate: float) -> Tensor:
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
