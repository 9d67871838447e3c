"""Fixed filters in full precision: a filter bank whose coefficients are rounded no longer gives back what it took."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn


class FixedFilters(nn.Module):
    """A module whose buffers are filters: moves follow their owner, casts do not."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self


def in_full_precision(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` in at least float32, under autocast too, returned in the dtype of `x`."""
    device = x.device.type
    full = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    # On CUDA a float32 convolution is one of TF32 unless a global switch says otherwise: 10 bits of mantissa, and 60 dB.
    least = torch.float64 if x.is_cuda else torch.float32
    with full:
        return function(x.to(torch.promote_types(x.dtype, least))).to(x.dtype)
