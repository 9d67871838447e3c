"""Fixed filters of the spectral losses: the A-weighting of hearing as a short FIR, and triangular mel bands. Computed in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Poles of the A-weighting in Hz and its gain at 1 kHz in dB, IEC 61672-1 annex E.
POLES_HZ = (20.598997, 107.65265, 737.86223, 12194.217)
GAIN_1KHZ_DB = 1.9997
GRID = 512  # chosen as in auraloss, whose filter the published models were trained with

MEL_LINEAR_HZ = 200 / 3  # Hz per mel below 1 kHz, in Slaney's Auditory Toolbox (1998)
MEL_LOG_FROM_HZ, MEL_LOG_STEP = 1000.0, math.log(6.4) / 27


def a_weighting_fir(sample_rate: int, taps: int = 101) -> Tensor:
    """Symmetric FIR (taps,) whose magnitude response is the A-weighting, in the least-squares sense. `taps` is odd.

    As a pre-emphasis of audio losses: arXiv:1911.08922.
    """
    frequency = torch.arange(GRID, dtype=torch.float64) / GRID  # 1 is half the sample rate
    return least_squares_fir(frequency, _a_weighting(frequency, sample_rate), taps)


def _a_weighting(frequency: Tensor, sample_rate: int) -> Tensor:
    """Magnitude of the digital filter that the bilinear transform makes of the analog one."""
    squared = (2 * sample_rate * torch.tan(math.pi / 2 * frequency)).square()
    low, first, second, high = ((2 * math.pi * pole) ** 2 for pole in POLES_HZ)
    slopes = (squared + low) * (squared + high) * ((squared + first) * (squared + second)).sqrt()
    return high * 10 ** (GAIN_1KHZ_DB / 20) * squared.square() / slopes


def least_squares_fir(frequency: Tensor, magnitude: Tensor, taps: int) -> Tensor:
    """The symmetric FIR nearest to a magnitude response given at pairs of frequencies, linear within each pair.

    Minimises the integral over the pairs of |A(f) - D(f)|^2 with A(f) = sum_n a_n cos(pi n f); the integrals have closed forms,
    so the a_n solve a symmetric linear system (the normal equations).

    Args:
        frequency: (2 K,) edges in ascending order as a share of half the sample rate.
        magnitude: (2 K,) the wanted D at the edges.
    """
    left, right = frequency[0::2], frequency[1::2]
    slope = (magnitude[1::2] - magnitude[0::2]) / (right - left)
    offset = magnitude[0::2] - slope * left
    n = torch.arange(taps, dtype=torch.float64)[:, None]
    cosines = (right * torch.sinc(n * right) - left * torch.sinc(n * left)).sum(1)  # integrals of cos(pi n f)
    order = torch.arange(taps // 2 + 1)
    matrix = cosines[(order[:, None] - order).abs()] + cosines[order[:, None] + order]
    wanted = _weighted_cosines(n[: len(order)], right, slope, offset) - _weighted_cosines(n[: len(order)], left, slope, offset)
    a = torch.linalg.solve(matrix, wanted.sum(1))
    return torch.cat([a.flip(0)[:-1], 2 * a[:1], a[1:]])


def _weighted_cosines(n: Tensor, f: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Antiderivative at `f` of (slope f + offset) cos(pi n f), for each n (N, 1) and each pair."""
    curved = torch.cos(math.pi * n * f) / (math.pi * n.clamp(min=1)).square()
    level = slope * f + offset
    return f * level * torch.sinc(n * f) + slope * torch.where(n > 0, curved, -f.square() / 2)


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangles of equal area (n_mels, n_fft // 2 + 1) between 0 Hz and half the sample rate, on Slaney's mel scale."""
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    top = _hz_to_mel(sample_rate / 2)
    edges = _mel_to_hz(torch.linspace(0, top, n_mels + 2, dtype=torch.float64))
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))[:, None]


def _hz_to_mel(hz: float) -> float:
    if hz < MEL_LOG_FROM_HZ:
        return hz / MEL_LINEAR_HZ
    return MEL_LOG_FROM_HZ / MEL_LINEAR_HZ + math.log(hz / MEL_LOG_FROM_HZ) / MEL_LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    knee = MEL_LOG_FROM_HZ / MEL_LINEAR_HZ
    return torch.where(mel < knee, mel * MEL_LINEAR_HZ, MEL_LOG_FROM_HZ * torch.exp((mel - knee) * MEL_LOG_STEP))
