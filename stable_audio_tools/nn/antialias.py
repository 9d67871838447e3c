"""Antialiased nonlinearities: up by two, apply, down by two, with Kaiser-windowed sinc filters (arXiv:2106.12423, appendix C).

An activation makes new frequencies; those above half the rate fold back as noise. At twice the rate they can be filtered out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATIO, TAPS = 2, 12  # the published layers' rate and filter length


def kaiser_beta(attenuation: float) -> float:
    """Shape of the Kaiser window whose filter stops by so many dB (Kaiser 1974)."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21) if attenuation > 21 else 0.0


def kaiser_sinc(cutoff: float, half_width: float, taps: int) -> Tensor:
    """Low-pass filter of unit gain at 0 Hz: (1, 1, taps), `taps` even.

    Args:
        cutoff: half-amplitude frequency, cycles per sample.
        half_width: half of the transition band, cycles per sample. Kaiser's formulas give the window from it.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    beta = kaiser_beta(attenuation)
    time = torch.arange(taps) - taps / 2 + 0.5
    filter_ = torch.kaiser_window(taps, periodic=False, beta=beta) * torch.sinc(2 * cutoff * time)
    return (filter_ / filter_.sum()).view(1, 1, taps)


class _Filter(nn.Module):
    """Holds the taps under the published key; the values are constants."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", kaiser_sinc(0.5 / RATIO, 0.6 / RATIO, TAPS))

    def taps(self, x: Tensor) -> Tensor:
        return self.filter.to(x.dtype).expand(x.shape[1], -1, -1)


class _Up(_Filter):
    def forward(self, x: Tensor) -> Tensor:
        edge = TAPS // RATIO - 1
        crop = edge * RATIO + (TAPS - RATIO) // 2
        padded = F.pad(x, (edge, edge), mode="replicate")
        return RATIO * F.conv_transpose1d(padded, self.taps(x), stride=RATIO, groups=x.shape[1])[..., crop:-crop]


class _Down(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lowpass = _Filter()

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(padded, self.lowpass.taps(x), stride=RATIO, groups=x.shape[1])


class AntialiasedActivation(nn.Module):
    """`act` at twice the rate. (B, C, T) -> (B, C, T)."""

    def __init__(self, act: nn.Module):
        super().__init__()
        self.act, self.upsample, self.downsample = act, _Up(), _Down()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))
