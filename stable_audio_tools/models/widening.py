"""Pretrained weights of a model that has been given further conditions: their columns stay, the new ones are zero.

With zeros the new conditions say nothing at first, so the widened model starts as the pretrained one. That holds where conditions
are added behind those the weights were trained with, since their order is the order of the columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Weights that conditions stand side by side in, and the dimensions that grow with them.
GROWING = (
    (re.compile(r"(^|\.)to_global_embed\.0\.weight$"), (1,)),
    (re.compile(r"(^|\.)transformer\.project_in\.weight$"), (1,)),
    (re.compile(r"(^|\.)preprocess_conv\.weight$"), (0, 1)),
)
ROUTES = {"global_cond_ids": "global_", "input_concat_ids": "input_concat"}


def widen(key: str, given: Tensor, target: Tensor) -> Tensor | None:
    """`given` in the shape of `target`, zeros where it has nothing; None where the weight is none that conditions widen."""
    dims = next((dims for pattern, dims in GROWING if pattern.search(key)), ())
    if given.ndim != target.ndim or not dims:
        return None
    grown = [new - old for old, new in zip(given.shape, target.shape, strict=True)]
    if min(grown) < 0 or any(more for dim, more in enumerate(grown) if dim not in dims):
        return None
    wide = torch.zeros(target.shape, dtype=given.dtype)
    wide[tuple(slice(size) for size in given.shape)] = given
    return wide


def misplaced_condition(config: Mapping[str, Any] | None, model: nn.Module) -> str:
    """The route whose trained conditions do not come first, in their order, in `model`; empty where they do, or nothing is known.

    Args:
        config: the model config that the weights were trained with.
    """
    routes = getattr(model, "routes", None)
    diffusion = (config or {}).get("model", {}).get("diffusion", {})
    for key, name in ROUTES.items():
        trained: Sequence[str] = diffusion.get(key, ())
        if routes is not None and tuple(trained) != tuple(getattr(routes, name)[: len(trained)]):
            return key
    return ""
