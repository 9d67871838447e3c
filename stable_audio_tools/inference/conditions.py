"""What a conditional model is told about each item, and the guided model as samplers see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.guidance import Guidance
from stable_audio_tools.diffusion.known import Known
from stable_audio_tools.diffusion.objectives import velocity_from_x0
from stable_audio_tools.diffusion.samplers import Field, Prediction
from stable_audio_tools.models.conditioners import INPAINT_IDS
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.conditioners.routing import as_condition
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion

Metadata = Sequence[Mapping[str, Any]]
Conditions = Mapping[str, Condition]


def batch_size_of(asked: int | None, metadata: Metadata | None, tensors: Conditions | None) -> int:
    if (metadata is None) == (tensors is None):
        raise ValueError("give either conditioning or conditioning_tensors")
    _check_listed(metadata, "conditioning")
    count = len(metadata) if metadata is not None else next(iter(tensors.values())).tensor.shape[0] if tensors else 1
    batch_size = count if asked is None else asked
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def _conditions(
    model: ConditionedDiffusion, metadata: Metadata | None, tensors: Conditions | None, batch_size: int, name: str
) -> dict[str, Condition]:
    """One condition of each id for every item."""
    if metadata is not None and tensors is not None:
        raise ValueError(f"give either {name} or {name}_tensors, not both")
    _check_listed(metadata, name)
    if tensors is not None:
        return {key: _repeated(condition, batch_size, f"{name}_tensors[{key!r}]") for key, condition in tensors.items()}
    assert metadata is not None
    if len(metadata) not in (1, batch_size):
        raise ValueError(f"{name} has {len(metadata)} entries for a batch of {batch_size}; give one for each item, or one for all")
    return model.conditioner(list(metadata) * (batch_size // len(metadata)), next(model.model.parameters()).device)


def _check_listed(metadata: object, name: str) -> None:
    if isinstance(metadata, Mapping):
        raise ValueError(f"{name} is one item's metadata; put it in a list, [{{...}}], which has an entry for each item")


def both_conditions(
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


def guided_field(
    model: ConditionedDiffusion,
    conditions: Conditions,
    negative: Conditions | None,
    guidance: Guidance,
    *,
    cfgpp: bool,
    known: Known | None = None,
) -> Field:
    """The guided model as samplers see it; for CFG++ with the noise of its unconditional half; known frames go to what they are."""
    objective, options = model.objective, guidance.for_run()

    def field(x: Tensor, t: Tensor) -> Prediction:
        info: dict[str, Any] | None = {} if cfgpp else None
        output = model(x, t, conditions, negative_cond=negative, known=known, info=info, rescale_cfg=True, **options)
        unguided = output if info is None else info.get("uncond_output", output)
        if known is not None:
            there = velocity_from_x0(objective, x, known.latents.to(x), t)
            output, unguided = (torch.where(known.keep[:, None], there, found) for found in (output, unguided))
        return Prediction(output, objective.denoised(x, output, t), objective.noise(x, unguided, t))

    return field


def check_masks_given(model: ConditionedDiffusion, conditions: Conditions) -> None:
    if missing := [name for name in INPAINT_IDS if name in model.routes.input_concat and name not in conditions]:
        raise ValueError(f"the model inpaints, and nothing says what is given ({', '.join(missing)}): use generate_diffusion_cond_inpaint")
