"""The fundamental frequency of single notes, by harmonic summation on a long spectrum; says so where there is none.

Candidates lie 5 cents apart; each collects the amplitudes at its harmonics, every next one counting less, which settles
octaves (Hermes 1988, doi:10.1121/1.396427). The best one is refined to a fraction of a cent on the energy at its
harmonics. The confidence is the share of all energy that lies at the harmonics: near 1 for a tone, small for noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .clips import to_mono

FRAME_S = 0.5
LOWEST_HZ, HIGHEST_HZ = 40.0, 5000.0
VOICED = 0.3  # chosen: between real sounds at 10 dB signal-to-noise ratio and white noise
_STEP_CENTS, _FINE_CENTS = 5, 30
_HARMONICS = 10
_WEIGHT = 0.84  # Hermes 1988, section II
_FUNDAMENTAL = 0.15  # a candidate without this share of its strongest harmonic's amplitude at itself loses in proportion
_HALF_WIDTH = 2.0  # of a partial in a Hann window's spectrum, in 1 / frame length


class PitchEstimate(NamedTuple):
    """frequency_hz: (B,), NaN where nothing sounds. confidence: (B,) in [0, 1]; a clip is voiced from `VOICED` on."""

    frequency_hz: Tensor
    confidence: Tensor

    @property
    def voiced(self) -> Tensor:
        return self.confidence >= VOICED

    def cents_from(self, midi: Tensor) -> Tensor:
        """(B,) signed distance from MIDI notes (A4 = 69 = 440 Hz); NaN where the clip is not voiced."""
        cents = 1200 * torch.log2(self.frequency_hz / 440) - 100 * (midi - 69)
        return torch.where(self.voiced, cents, torch.nan)


class Spectrum(NamedTuple):
    """power: (B, F) mean over the frames of a clip, at multiples of `bin_hz`; half_width_hz: of one partial's peak."""

    power: Tensor
    bin_hz: float
    half_width_hz: float

    def share_at(self, frequency_hz: Tensor, harmonics: Tensor) -> Tensor:
        """(B, H) share of all energy above `LOWEST_HZ` that lies at each harmonic of each clip's frequency."""
        cumulative = F.pad(self.power, (1, 0)).double().cumsum(-1)
        middle = frequency_hz.nan_to_num(nan=LOWEST_HZ).double()[:, None] * harmonics
        # Neighbours must not overlap, or low notes would count energy twice.
        half = torch.minimum(torch.tensor(self.half_width_hz), frequency_hz.nan_to_num(nan=LOWEST_HZ)[:, None] / 2)
        edges = [((middle + side * half) / self.bin_hz).round().long().clamp(0, self.power.shape[-1]) for side in (-1, 1)]
        energy = cumulative.gather(1, edges[1]) - cumulative.gather(1, edges[0])
        return (energy / self.total[:, None].clamp_min(1e-30)).float()

    @property
    def total(self) -> Tensor:
        return self.power[:, round(0.8 * LOWEST_HZ / self.bin_hz) :].double().sum(-1)


def spectrum(mono: Tensor, sample_rate: int) -> Spectrum:
    """(B, T) to its spectrum over half-overlapping Hann windows of half a second; loud moments count most."""
    frame = min(mono.shape[-1], round(FRAME_S * sample_rate))
    size = 2 ** math.ceil(math.log2(4 * frame))
    window = torch.hann_window(frame)
    starts = range(0, mono.shape[-1] - frame + 1, max(1, frame // 2))
    power = torch.zeros(len(mono), size // 2 + 1)
    for start in starts:
        power += torch.fft.rfft(window * mono[:, start : start + frame], size).abs().square()
    return Spectrum(power / len(starts), sample_rate / size, _HALF_WIDTH * sample_rate / frame)


def estimate_pitch(audio: Tensor, sample_rate: int) -> PitchEstimate:
    """The fundamental of each clip of (B, C, T) or (B, T) audio, between 40 Hz and 5 kHz. Accepts NaN and silence."""
    return pitch_of(spectrum(to_mono(audio), sample_rate))


def pitch_of(found: Spectrum) -> PitchEstimate:
    """The fundamental of each clip from its spectrum."""
    nyquist = found.bin_hz * (found.power.shape[-1] - 1)
    octaves = math.log2(min(HIGHEST_HZ, 0.95 * nyquist) / LOWEST_HZ)
    grid = LOWEST_HZ * 2 ** (torch.arange(0, octaves * 1200, _STEP_CENTS) / 1200)
    amplitudes = _at(found.power.sqrt(), grid.expand(len(found.power), -1), found.bin_hz)
    coarse = grid[_harmonic_sum(amplitudes).argmax(-1)]

    cents = torch.arange(-_FINE_CENTS, _FINE_CENTS + 1.0)
    candidates = coarse[:, None] * 2 ** (cents / 1200)
    energy = _at(found.power, candidates, found.bin_hz).sum(-1)
    frequency_hz = coarse * 2 ** (_top(energy, cents) / 1200)

    harmonics = torch.arange(1, 1 + int(nyquist / LOWEST_HZ))
    confidence = found.share_at(frequency_hz, harmonics).sum(-1)
    sounds = found.total > 0
    return PitchEstimate(torch.where(sounds, frequency_hz, torch.nan), torch.where(sounds, confidence, 0.0))


def _at(values: Tensor, frequencies: Tensor, bin_hz: float) -> Tensor:
    """Values (B, F) at the first harmonics of (B, N) frequencies, between bins by a straight line: (B, N, H), 0 past Nyquist."""
    places = frequencies[..., None] * torch.arange(1, _HARMONICS + 1) / bin_hz
    last = values.shape[-1] - 1
    low = places.long().clamp(max=last - 1)
    rest = places - low
    rows = low.flatten(1)
    left, right = values.gather(1, rows).view_as(places), values.gather(1, rows + 1).view_as(places)
    return torch.where(places <= last, left + rest * (right - left), 0.0)


def _harmonic_sum(amplitudes: Tensor) -> Tensor:
    """(B, N, H) to (B, N). A candidate that carries little itself is a subharmonic of what sounds, and is marked down."""
    total = (amplitudes * _WEIGHT ** torch.arange(_HARMONICS)).sum(-1)
    own = amplitudes[..., 0] / (_FUNDAMENTAL * amplitudes.amax(-1)).clamp_min(1e-20)
    return total * own.clamp(max=1.0)


def _top(values: Tensor, positions: Tensor) -> Tensor:
    """(B,) place of the maximum of (B, N) values at evenly spaced positions, refined by a parabola."""
    best = values.argmax(-1).clamp(1, values.shape[-1] - 2)
    before, peak, after = (values.gather(1, (best + side)[:, None])[:, 0] for side in (-1, 0, 1))
    curve = before - 2 * peak + after
    shift = torch.where(curve < 0, 0.5 * (before - after) / curve, 0.0).clamp(-1, 1)
    return positions[best] + shift * (positions[1] - positions[0])
