"""Every n-th sample of a signal, once the frequencies that no longer fit are gone. B batch, C channels, T samples."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .exact import FixedBuffers, at_least_single, no_autocast

ZERO_CROSSINGS, ROLLOFF = 24, 0.945  # of the filter on each side, and its cut-off: those of the julius resampler


class Decimate(FixedBuffers):
    """(B, C, T) to (B, C, T // factor), sample n at the time of sample n * factor; in at least float32, under autocast too.

    The filter is a sinc under a Hann window: flat to 0.86 of the new half rate, and silent from 1.03 of it.

    Args:
        edges: what surrounds the signal: its outermost samples, or zeros (`constant`).
    """

    taps: Tensor

    def __init__(self, factor: int, *, edges: Literal["replicate", "constant"] = "replicate"):
        super().__init__()
        self.factor, self.edges = factor, edges
        self.reach = math.ceil(ZERO_CROSSINGS * factor / ROLLOFF)
        crossings = (torch.arange(-self.reach, self.reach + 1, dtype=torch.float64) * (ROLLOFF / factor)).clamp(
            -ZERO_CROSSINGS, ZERO_CROSSINGS
        )
        taps = torch.sinc(crossings) * torch.cos(crossings * (math.pi / 2 / ZERO_CROSSINGS)).square()
        self.register_buffer("taps", at_least_single((taps / taps.sum()).to(torch.get_default_dtype())), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        x = at_least_single(audio)
        if self.factor == 1:
            return x
        padded = F.pad(x, (self.reach, self.reach), self.edges).flatten(0, 1)[:, None]
        with no_autocast(x):
            kept = F.conv1d(padded, self.taps.to(x.dtype)[None, None], stride=self.factor)
        return kept[:, 0, : audio.shape[-1] // self.factor].unflatten(0, audio.shape[:2])
