"""Activation checkpointing: what a backward pass computes again instead of keeping it. arXiv:1604.06174."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
Output = TypeVar("Output")

aten = torch.ops.aten
# Products are most of the compute and a part of the memory; norms, activations and rotations are the reverse. arXiv:2205.05198.
PRODUCTS = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.convolution.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
)


def recomputed(function: Callable[[Tensor], Output], x: Tensor, how: Recompute) -> Output:
    """`function(x)`, and what its backward pass needs is kept, or computed again; losses and gradients are the same.

    Args:
        function: deterministic, as a block without dropout is.
        how: `none`: keep all; `selective`: keep the results of matrix products and attention; `full`: keep x alone.
    """
    if how == "none" or not torch.is_grad_enabled():
        return function(x)
    if how == "full":
        return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    contexts = partial(create_selective_checkpoint_contexts, _keep_products)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _keep_products(context: object, operation: object, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
