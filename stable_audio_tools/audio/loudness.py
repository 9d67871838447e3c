"""Programme loudness of a clip in LUFS: ITU-R BS.1770-4, of mono and stereo."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ABSOLUTE_GATE = -70.0  # LUFS, BS.1770-4 equation 4
RELATIVE_GATE = -10.0  # LU below the loudness of what passes the absolute gate, equation 6
OFFSET = -0.691  # dB, equation 2: a full-scale sine of 997 Hz in one channel is -3.01 LUFS
STEP_S = 0.1  # blocks are 400 ms, each 100 ms after the one before
LOWEST_RATE = 8000  # Hz; below it the weighting's shelf, at 1.7 kHz, comes close to half the rate


def loudness_lufs(audio: Tensor, sample_rate: int) -> float:
    """(C, T) on the CPU, C 1 or 2, to LUFS; -inf where all of it is below -70 LUFS, NaN where a sample is.

    A clip shorter than one block of 400 ms is taken as one block.

    Raises:
        ValueError: the sample rate is below 8000 Hz, or there are more than 2 channels, whose places would have to be known.
    """
    if not can_measure(sample_rate, audio.shape[0]):
        raise ValueError(f"loudness of {audio.shape[0]} channels at {sample_rate} Hz; expected 1 or 2 and at least {LOWEST_RATE} Hz")
    power = _block_power(k_weighted(audio.double(), sample_rate).square().sum(0), sample_rate)
    if not power.isfinite().all():
        return math.nan
    power = power[_lufs(power) > ABSOLUTE_GATE]
    if not len(power):
        return -math.inf
    loud = power[_lufs(power) > _lufs(power.mean()) + RELATIVE_GATE]
    return float(_lufs(loud.mean()))


def can_measure(sample_rate: int, channels: int) -> bool:
    return sample_rate >= LOWEST_RATE and channels in (1, 2)


def k_weighted(audio: Tensor, sample_rate: int) -> Tensor:
    """(C, T) through the two filters of BS.1770-4, annex 1: a shelf for the head, and a high pass."""
    from torchaudio.functional import lfilter  # its compiled recursion: one in Python takes minutes

    for numerator, denominator in k_weighting(sample_rate):
        audio = lfilter(audio, audio.new_tensor(denominator), audio.new_tensor(numerator), clamp=False)
    return audio


def k_weighting(sample_rate: int) -> tuple[tuple[list[float], list[float]], ...]:
    """(numerator, denominator) of both filters at any rate.

    BS.1770-4 gives coefficients for 48 kHz alone. These are of the analogue filters that those came from by the bilinear
    transform: Brecht De Man, "Evaluation of implementations of the EBU R128 loudness measurement", AES 145 (2018).
    """
    k, q, gain = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    middle, norm = gain**0.4996667741545416, 1 + k / q + k * k
    poles = [1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]
    shelf = [(gain + middle * k / q + k * k) / norm, 2 * (k * k - gain) / norm, (gain - middle * k / q + k * k) / norm]
    k, q = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    norm = 1 + k / q + k * k
    return (shelf, poles), ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm])


def _block_power(squares: Tensor, sample_rate: int) -> Tensor:
    """(T,) to the mean of each block."""
    step = round(STEP_S * sample_rate)
    count = len(squares) // step
    if count < 4:
        return squares.mean(0, keepdim=True)
    return squares[: count * step].view(count, step).mean(1).unfold(0, 4, 1).mean(1)


def _lufs(power: Tensor) -> Tensor:
    return OFFSET + 10 * torch.log10(power)
