"""From a batch of the data loader to what a strategy trains on: audio to latents, padding masks to the latent rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.models.pretransforms import Pretransform
from stable_audio_tools.models.unconditional_diffusion import UnconditionalDiffusion
from stable_audio_tools.training.strategies.base import LatentBatch

DiffusionModel = ConditionedDiffusion | UnconditionalDiffusion
AudioBatch = tuple[Tensor, Sequence[Mapping[str, Any]]]


def latent_batch(batch: AudioBatch, model: DiffusionModel, *, pre_encoded: bool = False) -> LatentBatch:
    """Encode a batch, and condition it if the model has conditions.

    Args:
        batch: audio (B, C, T) in [-1, 1], or latents if `pre_encoded`, and the B metadata dicts.
        model: owns the pretransform and the conditioner.
    """
    signal, metadata = unpacked(batch)
    mask = padding_mask(metadata, signal)
    latents = to_latents(signal, model.pretransform, pre_encoded=pre_encoded)
    conditions = model.conditioner(metadata, signal.device) if isinstance(model, ConditionedDiffusion) else None
    return LatentBatch(latents, resize_mask(mask, latents.shape[-1]), conditions, metadata)


def unpacked(batch: AudioBatch) -> tuple[Tensor, tuple[Mapping[str, Any], ...]]:
    """Signal (B, C, T) and metadata; some loaders, such as WebDataset's, put a whole batch into a batch of one: (1, B, C, T)."""
    signal, metadata = batch
    return signal[0] if signal.ndim == 4 and signal.shape[0] == 1 else signal, tuple(metadata)


def to_latents(signal: Tensor, pretransform: Pretransform | None, *, pre_encoded: bool = False) -> Tensor:
    """(B, C, T) audio, or stored latents, to what the denoiser sees."""
    if pretransform is None:
        return signal
    if pre_encoded:
        scale = getattr(pretransform, "scale", 1.0)
        return signal / scale if scale != 1.0 else signal
    with torch.set_grad_enabled(pretransform.enable_grad and torch.is_grad_enabled()):
        return pretransform.encode(signal)


def padding_mask(metadata: Sequence[Mapping[str, Any]], signal: Tensor) -> Tensor:
    """(B, T) bool, True where an item holds real audio; items without a `padding_mask` are real throughout."""
    length = signal.shape[-1]
    rows = [resize_mask(_row(item["padding_mask"]), length)[0] if "padding_mask" in item else None for item in metadata]
    full = torch.ones(length, dtype=torch.bool, device=signal.device)
    return torch.stack([full if row is None else row.to(signal.device) for row in rows])


def _row(mask: Any) -> Tensor:
    """(1, T) bool from a mask of any number type, or from a list with one in it or of its numbers, as sidecar files have them."""
    mask = mask[0] if isinstance(mask, list | tuple) and len(mask) == 1 else mask
    return torch.as_tensor(mask).reshape(1, -1).bool()


def resize_mask(mask: Tensor, length: int) -> Tensor:
    """(B, T) bool to (B, length): a frame is real if any of its samples is.

    Raises:
        ValueError: the mask is shorter than `length`.
    """
    if mask.shape[-1] == length:
        return mask
    if mask.shape[-1] < length:
        raise ValueError(f"padding mask has {mask.shape[-1]} entries for {length} frames")
    return F.adaptive_max_pool1d(mask[:, None].float(), length)[:, 0] > 0
