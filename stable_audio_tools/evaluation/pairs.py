"""Reconstructions against their originals, clip by clip: spectra, samples, and what listener models say."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.nn.reconstruction import MelParams, MultiResolutionMel, MultiResolutionSTFT, SpectralParams

from .bootstrap import ANY, AT_LEAST_0
from .comparison import Comparison
from .measure import Better, Measure
from .pair_scores import PESQ_SECONDS, pesq_of_channels, si_sdr, stoi_of_channels

STFT = SpectralParams(fft_sizes=(1024, 2048, 512), hop_sizes=(120, 240, 50), win_lengths=(600, 1200, 240))
"""Resolutions of arXiv:1910.11480, table 1."""
MEL = MelParams(
    n_mels=(5, 10, 20, 40, 80, 160, 320), window_lengths=(32, 64, 128, 256, 512, 1024, 2048), pow=1.0, log_weight=1.0, mag_weight=0.0
)
"""Of descript-audio-codec, arXiv:2306.06546, section 3.4."""

Score = Callable[[Tensor, Tensor, int], float]
"""Original and reconstruction, both (C, T), and their rate, to one number; NaN where there is none."""


def mrstft(comparison: Comparison) -> list[Measure]:
    """Distance of spectra: spectral convergence plus distance of log magnitudes, each channel by itself."""
    recipe = {"resolutions": list(STFT.fft_sizes), "hops": list(STFT.hop_sizes), "windows": list(STFT.win_lengths)}

    loss = cache(partial(MultiResolutionSTFT, STFT))

    def score(original: Tensor, copy: Tensor, sample_rate: int) -> float:
        if original.shape[-1] < STFT.min_samples:
            return math.nan
        return float(loss(sample_rate)(original[:, None], copy[:, None])["mrstft"])

    return _each_pair(comparison, "mrstft", score, recipe, "lower")


def mel(comparison: Comparison) -> list[Measure]:
    """Distance of log10 mel magnitudes, summed over window lengths, each channel by itself."""
    recipe = {"windows": list(MEL.window_lengths), "mels": list(MEL.n_mels)}

    loss = cache(partial(MultiResolutionMel, MEL))

    def score(original: Tensor, copy: Tensor, sample_rate: int) -> float:
        if original.shape[-1] < MEL.min_samples:
            return math.nan
        return float(loss(sample_rate)(original[:, None], copy[:, None]))

    return _each_pair(comparison, "mel", score, recipe, "lower")


def signal_to_distortion(comparison: Comparison) -> list[Measure]:
    """SI-SDR, the mean over channels."""

    def score(original: Tensor, copy: Tensor, sample_rate: int) -> float:
        return float(si_sdr(original, copy).mean())

    return _each_pair(comparison, "si_sdr", score, {"definition": "arXiv:1811.02508, without means"}, "higher", "dB")


def l1(comparison: Comparison) -> list[Measure]:
    """Mean absolute difference of samples."""

    def score(original: Tensor, copy: Tensor, sample_rate: int) -> float:
        return float((original - copy).abs().mean())

    return _each_pair(comparison, "l1", score, {}, "lower")


def pesq(comparison: Comparison) -> list[Measure]:
    """PESQ, the mean over channels; clips shorter than a quarter of a second have none."""

    def score(original: Tensor, copy: Tensor, sample_rate: int) -> float:
        return _mean(pesq_of_channels(original, copy, sample_rate)) if original.shape[-1] >= PESQ_SECONDS * sample_rate else math.nan

    return _each_pair(comparison, "pesq", score, {"definition": "P.862.2 from 16 kHz on, P.862 below"}, "higher")


def stoi(comparison: Comparison) -> list[Measure]:
    """STOI, the mean over channels."""

    def score(original: Tensor, copy: Tensor, sample_rate: int) -> float:
        return _mean(stoi_of_channels(original, copy, sample_rate))

    return _each_pair(comparison, "stoi", score, {"definition": "doi:10.1109/TASL.2011.2114881"}, "higher")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _each_pair(comparison: Comparison, name: str, score: Score, recipe: dict[str, Any], better: Better, unit: str = "") -> list[Measure]:
    """The mean over the pairs. Of two lengths the common part is compared; what is not finite or empty is left out, and said."""
    assert comparison.reference is not None
    values: list[float] = []
    rates: set[int] = set()
    for original, copy in zip(comparison.reference, comparison.generated, strict=True):
        if original.sample_rate != copy.sample_rate or len(original.audio) != len(copy.audio):
            shapes = [f"{len(clip.audio)} channels at {clip.sample_rate} Hz" for clip in (original, copy)]
            raise ValueError(f"{original.name or 'the original'} has {shapes[0]}, its reconstruction {shapes[1]}")
        length = min(original.audio.shape[-1], copy.audio.shape[-1])
        target, estimate = (clip.audio[:, :length].detach().to("cpu", torch.float32) for clip in (original, copy))
        rates.add(original.sample_rate)
        values.append(score(target, estimate, original.sample_rate) if original.is_whole and copy.is_whole else math.nan)
    span = AT_LEAST_0 if better == "lower" else ANY
    recipe = {**comparison.recipe, "sample_rate": rates.pop() if len(rates) == 1 else sorted(rates), **recipe}
    return [comparison.bootstrap.mean(name, torch.tensor(values), recipe, better, unit, span)]
