"""Sounds as sums of damped sinusoids and noise: exact frequencies, no aliasing, the same samples for the same draws.

Everything here is numpy in float64 on one item; times are in samples unless a name says seconds. Nothing depends on
which other items are made, in what order or in which process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Partials above this share of the Nyquist frequency are left out: the attack's side bands stay below Nyquist too.
BAND_LIMIT = 0.9
# chosen: 125 ms, the "fast" time weighting of sound level meters (IEC 61672-1).
LEVEL_WINDOW_S = 0.125
_COLUMNS, _ROWS = 64, 32  # a product of two such tiles is too small for a BLAS to start threads, in data workers above all


class Draws:
    """Random numbers of one item from a counter-based generator (Philox 4x64, Salmon et al. 2011).

    Only raw 64-bit words are taken from numpy, so the numbers do not change with numpy's versions or with the platform.

    Args:
        key: two numbers that name the stream, such as a seed and a purpose.
        index: which item of the stream.
    """

    def __init__(self, key: tuple[int, int], index: int):
        mask = 2**64 - 1
        counter = np.array([0, 0, index & mask, 0], dtype=np.uint64)
        self._bits = np.random.Philox(key=np.array([part & mask for part in key], dtype=np.uint64), counter=counter)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: int = 1) -> Array:
        """(size,) numbers in [low, high)."""
        top_bits = self._bits.random_raw(size) >> np.uint64(11)
        return low + (high - low) * (2.0**-53 * top_bits.astype(np.float64))

    def between(self, low: float, high: float) -> float:
        return float(self.uniform(low, high)[0])

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self.between(0, n))


@dataclass(frozen=True)
class Voice:
    """What to render: partials, noise and the envelope over both.

    ratios, amplitudes, phases, decays: (K,) each; frequency over the fundamental's, linear, radians, 1/s.
    noise: RMS of the noise relative to a partial of amplitude 1; noise_cutoff_hz: where it rolls off.
    decay: of the whole sound, 1/s. attack_s, release_s: raised-cosine fades.
    tremolo_hz, tremolo_depth: sinusoidal change of amplitude.
    """

    ratios: Array = field(default_factory=lambda: np.zeros(0))
    amplitudes: Array = field(default_factory=lambda: np.zeros(0))
    phases: Array = field(default_factory=lambda: np.zeros(0))
    decays: Array = field(default_factory=lambda: np.zeros(0))
    noise: float = 0.0
    noise_cutoff_hz: float = 20_000.0
    decay: float = 0.0
    attack_s: float = 0.005
    release_s: float = 0.03
    tremolo_hz: float = 5.0
    tremolo_depth: float = 0.0


def render(voice: Voice, frequency_hz: float, length: int, sample_rate: int, draws: Draws) -> Array:
    """(length,) samples of the voice at an arbitrary level; partials above the band limit are left out."""
    kept = voice.ratios * frequency_hz < BAND_LIMIT * sample_rate / 2
    sound = damped_sinusoids(
        frequency_hz / sample_rate * voice.ratios[kept],
        voice.amplitudes[kept],
        voice.phases[kept],
        (voice.decays[kept] + voice.decay) / sample_rate,
        length,
    )
    if voice.noise:
        decay = np.exp(np.arange(length) * (-voice.decay / sample_rate))
        sound += voice.noise / math.sqrt(2) * decay * smooth_noise(voice.noise_cutoff_hz, length, sample_rate, draws)
    return sound * envelope(voice, length, sample_rate, draws)


def damped_sinusoids(frequencies: Array, amplitudes: Array, phases: Array, decays: Array, length: int) -> Array:
    """sum_k a_k exp(-d_k n) sin(2 pi f_k n + phi_k) for n = 0 .. length - 1.

    exp(s n) at n = 64 b + i is exp(64 s b) exp(s i): one matrix product of two small tables, instead of a sine for each
    sample and partial.

    Args:
        frequencies, amplitudes, phases, decays: (K,) in cycles per sample, linear, radians, 1/samples.
    """
    tiles = -(-length // (_COLUMNS * _ROWS))
    starts = _COLUMNS * np.arange(float(tiles * _ROWS))[:, None]
    outer = _rotation(starts, frequencies, phases, decays, amplitudes)
    inner = _rotation(np.arange(float(_COLUMNS))[:, None], frequencies, 0.0 * phases, decays, 1.0)
    # Im(outer * inner) = Im(outer) Re(inner) + Re(outer) Im(inner)
    left = np.concatenate((outer[1], outer[0]), axis=1).reshape(tiles, _ROWS, -1)
    right = np.concatenate(inner, axis=1).T
    return np.matmul(left, right).reshape(-1)[:length]


def _rotation(n: Array, frequencies: Array, phases: Array, decays: Array, amplitudes: Array | float) -> tuple[Array, Array]:
    """Real and imaginary part, (N, K) each, of a exp((2 pi i f - d) n + i phi)."""
    angle = 2 * np.pi * n * frequencies + phases
    size = amplitudes * np.exp(-decays * n)
    return size * np.cos(angle), size * np.sin(angle)


def smooth_noise(cutoff_hz: float, length: int, sample_rate: int, draws: Draws) -> Array:
    """(length,) noise of RMS 1 that rolls off above a frequency: uniform and white, then two equal moving averages."""
    width = max(1, round(sample_rate / (2 * cutoff_hz)))
    kernel = np.convolve(np.ones(width), np.ones(width)) if width > 1 else np.ones(1)
    white = draws.uniform(-1, 1, length + len(kernel) - 1)
    return np.convolve(white, kernel, "valid") * math.sqrt(3 / float(np.sum(kernel**2)))


def envelope(voice: Voice, length: int, sample_rate: int, draws: Draws) -> Array:
    """(length,) attack, tremolo and release; starts and ends at zero, so that nothing clicks."""
    shape = np.ones(length)
    if voice.tremolo_depth:
        angle = 2 * np.pi * (voice.tremolo_hz / sample_rate * np.arange(length) + draws.between(0, 1))
        shape += voice.tremolo_depth * np.sin(angle)
    for seconds, part in ((voice.attack_s, shape), (voice.release_s, shape[::-1])):
        fade = min(max(2, round(seconds * sample_rate)), length // 2)
        part[:fade] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    return shape


def level(sound: Array, sample_rate: int) -> float:
    """RMS of the loudest 125 ms, stepped by a quarter of that; of the whole sound if it is shorter."""
    step = max(1, round(LEVEL_WINDOW_S * sample_rate / 4))
    steps = len(sound) // step
    if steps < 4:
        return math.sqrt(float(np.mean(np.square(sound))))
    blocks = sound[: steps * step].reshape(steps, step)
    energy = np.einsum("bi,bi->b", blocks, blocks)
    return math.sqrt(float(np.max(np.convolve(energy, np.ones(4), "valid"))) / (4 * step))
