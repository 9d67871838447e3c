"""Deterministic inputs of `tests/reference/losses.json` and `discriminators.json`: numbers of an implementation that is not ours.

input[n] = 0.5 cos(2 pi u / 2003),  u = ((3 + s) n^2 + (11 + 7 s) n + 17 s) mod 2003
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reference_input(shape: tuple[int, ...], s: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The input of number `s`, computed in float64 and rounded to float32 as it was for the record."""
    n = torch.arange(math.prod(shape), dtype=torch.int64)
    u = ((3 + s) * n * n + (11 + 7 * s) * n + 17 * s) % 2003
    return (0.5 * torch.cos(2 * math.pi * u.double() / 2003)).float().reshape(shape).to(dtype)
