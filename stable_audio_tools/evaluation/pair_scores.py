"""How near a reconstruction is to its original, sample by sample or as a listener model judges it. None has a gradient in use.

B batch, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.audio.resample import resample
from stable_audio_tools.nn.exact import at_least_single

PESQ_RATES = {16000: "wb", 8000: "nb"}  # ITU-T P.862.2, wideband, and P.862, narrowband
PESQ_SECONDS = 0.25  # the shortest signal of P.862


def si_sdr(target: Tensor, estimate: Tensor, *, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale-invariant signal-to-distortion ratio of each signal (..., T), in dB (...): how much of the estimate is the target."""
    target, estimate = at_least_single(target), at_least_single(estimate)
    if zero_mean:
        target, estimate = target - target.mean(-1, keepdim=True), estimate - estimate.mean(-1, keepdim=True)
    gain = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + eps)
    signal = gain * target
    distortion = (estimate - signal).square().sum(-1)
    return 10 * torch.log10(signal.square().sum(-1) / (distortion + eps) + eps)


def pesq_of_channels(target: Tensor, estimate: Tensor, sample_rate: int) -> list[float]:
    """PESQ of each channel of (C, T); channels without an utterance have none and are left out.

    Raises:
        ModuleNotFoundError: the package pesq is not installed.
    """
    from pesq import NoUtterancesError, pesq

    rate = max((rate for rate in PESQ_RATES if rate <= sample_rate), default=min(PESQ_RATES))
    values = []
    for original, copy in zip(_waveforms(target, sample_rate, rate), _waveforms(estimate, sample_rate, rate), strict=True):
        try:
            values.append(float(pesq(rate, original, copy, PESQ_RATES[rate])))
        except NoUtterancesError:
            continue
    return values


def stoi_of_channels(target: Tensor, estimate: Tensor, sample_rate: int) -> list[float]:
    """Short-time objective intelligibility of each channel of (C, T), 0 to 1 (Taal et al. 2011, doi:10.1109/TASL.2011.2114881).

    Raises:
        ModuleNotFoundError: the package pystoi is not installed.
    """
    from pystoi import stoi

    pairs = zip(*(_waveforms(audio, sample_rate, sample_rate) for audio in (target, estimate)), strict=True)
    return [float(stoi(original, copy, sample_rate)) for original, copy in pairs]


def _waveforms(audio: Tensor, sample_rate: int, rate: int) -> Iterator[Any]:
    """Each channel of (C, T) as a numpy array at `rate` Hz."""
    yield from resample(audio, sample_rate, rate).float().cpu().numpy()
