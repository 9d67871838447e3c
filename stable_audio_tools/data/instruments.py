"""What each synthetic instrument sounds like: its partials, noise and envelope, with variation from item to item.

Instruments differ in which partials they have, how these fade, how they start and how noisy they are. All pitched ones
carry clear energy at the fundamental, so that "the note" means one thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .synthesis import Array, Draws, Voice

InstrumentName = Literal["sine", "square", "saw", "triangle", "pluck", "bell", "organ", "flute", "noise"]
ALL_INSTRUMENTS: tuple[InstrumentName, ...] = get_args(InstrumentName)


@dataclass(frozen=True)
class Instrument:
    """words: its name in prompts. voice: (draws, number of harmonics below the band limit) -> one variant of the sound."""

    words: str
    voice: Callable[[Draws, int], Voice]
    pitched: bool = True

    @property
    def article(self) -> str:
        return "an" if self.words[0] in "aeiou" else "a"


def _wave(draws: Draws, numbers: Array, amplitudes: Array) -> Voice:
    """A steady wave that starts at a random place of its cycle: all partials' phases follow from one."""
    return Voice(
        ratios=numbers,
        amplitudes=amplitudes,
        phases=numbers * draws.between(0, 2 * np.pi),
        decays=np.zeros(len(numbers)),
        decay=draws.between(0.0, 2.0),
        attack_s=draws.between(0.005, 0.05),
        release_s=draws.between(0.02, 0.06),
    )


def _sine(draws: Draws, harmonics: int) -> Voice:
    return _wave(draws, np.ones(1), np.ones(1))


def _square(draws: Draws, harmonics: int) -> Voice:
    odd = np.arange(1.0, harmonics + 1, 2)
    return _wave(draws, odd, 1 / odd)


def _saw(draws: Draws, harmonics: int) -> Voice:
    numbers = np.arange(1.0, harmonics + 1)
    return _wave(draws, numbers, 1 / numbers)


def _triangle(draws: Draws, harmonics: int) -> Voice:
    odd = np.arange(1.0, harmonics + 1, 2)
    return _wave(draws, odd, (-1.0) ** (odd // 2) / odd**2)


def _pluck(draws: Draws, harmonics: int) -> Voice:
    """An ideal string plucked at a point along its length; the k-th partial fades faster with k squared."""
    numbers = np.arange(1.0, harmonics + 1)
    place, fading = draws.between(0.1, 0.3), draws.between(2.0, 4.0)
    return Voice(
        ratios=numbers,
        amplitudes=np.sin(np.pi * numbers * place) / (numbers * np.sin(np.pi * place)),
        phases=draws.uniform(0, 2 * np.pi, harmonics),
        decays=fading * (1 + draws.between(0.1, 0.2) * (numbers**2 - 1)),
        attack_s=0.003,
    )


_BELL_RATIOS = np.array([1.0, 2.0, 2.76, 4.07, 5.4, 6.8])
_BELL_AMPLITUDES = np.array([1.0, 0.35, 0.6, 0.4, 0.3, 0.2])
_BELL_DECAYS = np.array([1.5, 2.2, 3.0, 4.5, 6.5, 9.0])


def _bell(draws: Draws, harmonics: int) -> Voice:
    """Partials of a struck bar and the octave, out of tune with the fundamental; the upper ones beat in pairs."""
    upper, pairs = slice(1, None), len(_BELL_RATIOS) - 1
    split = 1 + draws.uniform(0.001, 0.003, pairs)
    amplitudes = _BELL_AMPLITUDES * draws.uniform(0.8, 1.2, pairs + 1)
    decays = _BELL_DECAYS * draws.between(0.8, 1.3)
    return Voice(
        ratios=np.concatenate((_BELL_RATIOS, _BELL_RATIOS[upper] * split)),
        amplitudes=np.concatenate((amplitudes[:1], 0.7 * amplitudes[upper], 0.3 * amplitudes[upper])),
        phases=draws.uniform(0, 2 * np.pi, 2 * pairs + 1),
        decays=np.concatenate((decays, decays[upper])),
        attack_s=0.002,
        release_s=0.05,
    )


_ORGAN = {1: 1.0, 2: 0.75, 3: 0.12, 4: 0.55, 6: 0.08, 8: 0.35, 16: 0.12}


def _organ(draws: Draws, harmonics: int) -> Voice:
    """Ranks of pipes an octave apart, steady."""
    return Voice(
        ratios=np.array(list(_ORGAN), dtype=np.float64),
        amplitudes=np.array(list(_ORGAN.values())) * draws.uniform(0.85, 1.15, len(_ORGAN)),
        phases=draws.uniform(0, 2 * np.pi, len(_ORGAN)),
        decays=np.zeros(len(_ORGAN)),
        attack_s=draws.between(0.02, 0.05),
        release_s=draws.between(0.04, 0.08),
    )


def _flute(draws: Draws, harmonics: int) -> Voice:
    """A few weak harmonics, breath, a slow start and a tremolo."""
    return Voice(
        ratios=np.array([1.0, 2.0, 3.0, 4.0]),
        amplitudes=np.array([1.0, 0.25, 0.12, 0.04]) * draws.uniform(0.8, 1.2, 4),
        phases=draws.uniform(0, 2 * np.pi, 4),
        decays=np.zeros(4),
        noise=draws.between(0.05, 0.08),
        noise_cutoff_hz=3000.0,
        attack_s=draws.between(0.06, 0.12),
        release_s=draws.between(0.05, 0.1),
        tremolo_hz=draws.between(4.5, 6.0),
        tremolo_depth=draws.between(0.08, 0.16),
    )


def _noise(draws: Draws, harmonics: int) -> Voice:
    return Voice(noise=1.0, noise_cutoff_hz=draws.between(2000.0, 12000.0), decay=draws.between(3.0, 9.0), attack_s=0.003)


INSTRUMENTS: dict[InstrumentName, Instrument] = {
    "sine": Instrument("sine wave", _sine),
    "square": Instrument("square wave", _square),
    "saw": Instrument("saw wave", _saw),
    "triangle": Instrument("triangle wave", _triangle),
    "pluck": Instrument("plucked string", _pluck),
    "bell": Instrument("bell", _bell),
    "organ": Instrument("organ", _organ),
    "flute": Instrument("flute", _flute),
    "noise": Instrument("noise burst", _noise, pitched=False),
}
