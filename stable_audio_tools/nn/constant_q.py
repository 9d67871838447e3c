"""Spectra whose bins are notes: constant-Q transform by windowed complex kernels (Brown 1991, doi:10.1121/1.400476).

Low notes need long windows but few samples, so the signal is halved from octave to octave as long as the hop and the notes allow it
(Schoerkhuber and Klapuri 2010, "Constant-Q transform toolbox for music processing"): every octave then costs about the same.
B batch, C channels, T samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .decimate import Decimate
from .exact import FixedBuffers, at_least_single, no_autocast

FLAT = 0.85  # of half the rate: up to there `Decimate` leaves notes and what their windows see beside them as they are
SMEAR = 8  # samples of the lowest rate kept beyond the ends of the signal, which halving smears


class ConstantQ(nn.Module):
    """(B, C, T) to complex (B, C, bins, T // hop_length + 1), in at least float32, under autocast too.

    Bin k is at fmin 2^(k / bins_per_octave) Hz, seen through a Hann window of sum 1 and length Q sample_rate / f with
    Q = 1 / (2^(1 / bins_per_octave) - 1), and scaled by the root of that length: white noise is equally loud in all bins. Frames are
    centred at multiples of hop_length, and zeros surround the signal. Bins that are not below half the rate are silent.
    """

    def __init__(self, sample_rate: int, *, hop_length: int, n_octaves: int, bins_per_octave: int, fmin: float):
        super().__init__()
        self.hop_length = hop_length
        width = 2 ** (1 / bins_per_octave) - 1
        octaves = [[fmin * 2 ** (octave + step / bins_per_octave) for step in range(bins_per_octave)] for octave in range(n_octaves)]
        self.halvings = [_halvings(sample_rate, hop_length, notes[-1] * (1 + 2 * width)) for notes in octaves]
        self.octaves = nn.ModuleList(
            _Octave(sample_rate, hop_length, notes, width, halved) for notes, halved in zip(octaves, self.halvings, strict=True)
        )
        self.halve = Decimate(2, edges="constant")

    def forward(self, audio: Tensor) -> Tensor:
        x = at_least_single(audio)
        frames = audio.shape[-1] // self.hop_length + 1
        coarsest = 2 ** max(self.halvings)
        signals = [F.pad(x, (SMEAR * coarsest, SMEAR * coarsest - x.shape[-1] % coarsest))]
        for _ in range(max(self.halvings)):
            signals.append(self.halve(signals[-1]))
        spectra = [
            octave(signals[count], SMEAR * coarsest // 2**count, frames) for octave, count in zip(self.octaves, self.halvings, strict=True)
        ]
        return torch.cat(spectra, dim=2)


def _halvings(sample_rate: int, hop_length: int, highest: float) -> int:
    """How often the rate can be halved for notes that reach up to `highest` Hz, and frames that fall on samples."""
    count = 0
    while hop_length % 2 ** (count + 1) == 0 and highest <= FLAT * sample_rate / 2 ** (count + 2):
        count += 1
    return count


class _Octave(FixedBuffers):
    """The notes of one octave, from the signal after `halvings` halvings."""

    kernels: Tensor

    def __init__(self, sample_rate: int, hop_length: int, notes: list[float], width: float, halvings: int):
        super().__init__()
        self.hop_length = hop_length // 2**halvings
        rate = sample_rate / 2**halvings
        self.reach = math.ceil(rate / (width * notes[0]) / 2)
        time = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64) / rate
        frequency = torch.tensor(notes, dtype=torch.float64)[:, None]
        window = torch.cos(math.pi * (time * frequency * width).clamp(-0.5, 0.5)).square()
        loudness = (sample_rate / (width * frequency)).sqrt() * (frequency < sample_rate / 2)
        phase = 2 * math.pi * frequency * time
        kernels = torch.stack([phase.cos(), -phase.sin()], 1) * (window * loudness / window.sum(1, keepdim=True))[:, None]
        self.register_buffer("kernels", at_least_single(kernels.flatten(0, 1).to(torch.get_default_dtype())), persistent=False)

    def forward(self, signal: Tensor, start: int, frames: int) -> Tensor:
        """(B, C, samples) at this octave's rate to complex (B, C, notes, frames), the first frame centred at sample `start`."""
        needed = (frames - 1) * self.hop_length + 2 * self.reach + 1
        left = self.reach - start
        padded = F.pad(signal, (left, needed - left - signal.shape[-1])).flatten(0, 1)[:, None]
        with no_autocast(signal):
            parts = F.conv1d(padded, self.kernels.to(signal.dtype)[:, None], stride=self.hop_length)
        spectrum = torch.view_as_complex(parts.unflatten(1, (-1, 2)).movedim(2, -1).contiguous())
        return spectrum.unflatten(0, signal.shape[:2])
