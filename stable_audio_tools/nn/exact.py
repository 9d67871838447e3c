"""Full precision for what half precision is too coarse for: fixed filters, whose rounding adds noise; transforms, distances, averages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn


class FixedBuffers(nn.Module):
    """A module whose buffers are constants, such as filters: moves follow their owner, casts do not."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, what is computed on the device of `x` keeps the precision of its inputs."""
    # Asking torch whether the device has autocast breaks a compiled graph; the meta device, which computes nothing, has none.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def at_least_single(x: Tensor) -> Tensor:
    """`x` itself in float32 or float64, half-precision numbers in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` in at least float32, under autocast too, returned in the dtype of `x`."""
    # On CUDA a float32 convolution is one of TF32 unless a global switch says otherwise: 10 bits of mantissa, and 60 dB.
    least = torch.float64 if x.is_cuda else torch.float32
    with no_autocast(x):
        return function(x.to(torch.promote_types(x.dtype, least))).to(x.dtype)
