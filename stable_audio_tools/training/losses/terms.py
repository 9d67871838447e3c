"""The parts that every loss is summed from: a named term with a weight that may fade, means over real frames, bottleneck terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class LossTerm:
    """One summand of a loss.

    name: its name in logs.
    weight: its factor at the first train step.
    decay: factor on the weight with every train step; 1 keeps it.
    """

    name: str
    weight: float
    decay: float = 1.0

    def weight_at(self, step: int) -> float:
        """The factor after `step` train steps. It depends on the step alone, so evaluating a loss never changes it."""
        return self.weight * self.decay**step

    def __call__(self, value: Tensor, step: int = 0) -> Tensor:
        return self.weight_at(step) * value


# What bottlenecks report beside their latents, and how much it counts unless the config says otherwise (upstream's weights).
BOTTLENECK_TERMS = {
    "kl": LossTerm("kl", 1e-6),
    "mmd": LossTerm("mmd", 100.0),
    "softnorm_loss": LossTerm("softnorm", 0.01),  # chosen: upstream has no loss for it; about what 1e-4 is for a VAE of 64 channels
    "quantizer_loss": LossTerm("quantizer", 1.0),
    "vq/codebook_loss": LossTerm("codebook", 1.0),
    "vq/commitment_loss": LossTerm("commitment", 0.25),
}


def bottleneck_terms(info: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The weighted loss terms (scalars) in what a bottleneck reported, by name.

    Args:
        info: as of `Bottleneck.encode(..., return_info=True)`; scalars under the keys of `BOTTLENECK_TERMS`.
        weights: replaces a term's weight, by its name.
    """
    return {term.name: weights.get(term.name, term.weight) * info[key] for key, term in BOTTLENECK_TERMS.items() if key in info}


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean of `count` over the processes that train together, float32; without others, what it is here. All of them must make the call.

    Gradients are averaged over processes. A sum over `count` elements divided by this is therefore, in that average, the mean over
    the elements of all processes, however differently they are shared out; divided by `count` itself it would be a mean of means.
    """
    count = count.detach().float()
    if not distributed.is_available() or not distributed.is_initialized():
        return count
    total = count.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def masked_mean(value: Tensor, mask: Tensor | None = None, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The mean of `value` where `mask` is True, over `dim` or over everything; 0 where nothing is True.

    Args:
        mask: bool, broadcast to the shape of `value`, such as (B, 1, T) for (B, C, T); None: all of it counts.

    Raises:
        ValueError: the mask is not bool. As numbers it would weight, or as an index pick other elements.
    """
    if mask is None:
        return value.mean() if dim is None else value.mean(dim)
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask must be bool, this one is {mask.dtype}: compare it with 0 first")
    mask = mask.expand_as(value)
    kept = value.where(mask, 0)
    if dim is None:
        return kept.sum() / mask.sum().clamp(min=1)
    return kept.sum(dim) / mask.sum(dim).clamp(min=1)
