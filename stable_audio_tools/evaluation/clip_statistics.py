"""What can be said of one clip's sound without another to compare it with: levels, spectrum, stereo image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.loudness import ABSOLUTE_GATE, LOWEST_RATE, loudness_lufs
from stable_audio_tools.audio.resample import resample

from .bootstrap import ANY, AT_LEAST_0, COSINE, SHARE, Span
from .loudness import silence_share

PEAK_FLOOR_DB = -120.0  # what silence counts as, so that means exist
OVERSAMPLING = 4  # BS.1770-4, annex 2
CLIPPED = 1 - 2.0**-14  # two steps of 16 bits below full scale
WINDOW_S = 0.046  # chosen: as in the spectrograms of the report
ROLLOFF = 0.85
FLATNESS_FLOOR = 1e-10  # relative to the mean power: -100 dB, so that empty bands do not decide
FRAMES_AT_ONCE = 2048  # bounds memory whatever the length


@dataclass(frozen=True)
class Statistic:
    """unit: of the value. what: how it is measured, for recipes. span: what values it can have."""

    unit: str
    what: str
    span: Span = ANY


STATISTICS = {
    "loudness": Statistic("LUFS", f"BS.1770-4, gated; silence counts as {ABSOLUTE_GATE:.0f}"),
    "sample_peak": Statistic("dBFS", f"largest magnitude; silence counts as {PEAK_FLOOR_DB:.0f}"),
    "true_peak": Statistic("dBTP", f"largest magnitude at {OVERSAMPLING} times the rate; silence counts as {PEAK_FLOOR_DB:.0f}"),
    "clipping": Statistic("share", "samples at full scale", SHARE),
    "silence": Statistic("share", "blocks of 20 ms below -60 dBFS", SHARE),
    "dc": Statistic("", "largest magnitude of a channel's mean", AT_LEAST_0),
    "centroid": Statistic("Hz", "mean frequency of the mean power spectrum", AT_LEAST_0),
    "bandwidth": Statistic("Hz", "standard deviation of frequency in the mean power spectrum", AT_LEAST_0),
    "rolloff": Statistic("Hz", f"{ROLLOFF:.0%} of the power lies below", AT_LEAST_0),
    "flatness": Statistic("", "geometric over arithmetic mean of the mean power spectrum", SHARE),
    "stereo_width": Statistic("share", "power of left minus right in all power; mono has 0", SHARE),
    "stereo_correlation": Statistic("", "of left and right; mono has 1", COSINE),
}


def clip_statistics(audio: Tensor, sample_rate: int) -> dict[str, float]:
    """The value of each of `STATISTICS` for finite (C, T) audio, T above 0; NaN where it is not defined, such as a spectrum of silence."""
    audio = audio.detach().to("cpu", torch.float32)
    raised = resample(audio, sample_rate, OVERSAMPLING * sample_rate)
    return {
        "loudness": _loudness(audio, sample_rate),
        "sample_peak": _decibels(audio),
        "true_peak": max(_decibels(audio), _decibels(raised)),
        "clipping": float((audio.abs() >= CLIPPED).float().mean()),
        "silence": float(silence_share(audio[None], sample_rate)[0]),
        "dc": float(audio.double().mean(-1).abs().max()),
        **spectral_shape(mean_power(audio, sample_rate), sample_rate),
        **_stereo(audio.double()),
    }


def _loudness(audio: Tensor, sample_rate: int) -> float:
    if sample_rate < LOWEST_RATE:
        return math.nan
    return max(ABSOLUTE_GATE, loudness_lufs(audio if len(audio) <= 2 else to_channels(audio, 1), sample_rate))


def _decibels(audio: Tensor) -> float:
    peak = float(audio.abs().max())
    return max(PEAK_FLOOR_DB, 20 * math.log10(peak)) if peak > 0 else PEAK_FLOOR_DB


def mean_power(audio: Tensor, sample_rate: int) -> Tensor:
    """(C, T) less its means to the power (bins,) of all frames and channels, from 0 Hz to half the rate; loud moments count most."""
    size = 2 ** max(6, round(math.log2(sample_rate * WINDOW_S)))
    audio = audio - audio.mean(-1, keepdim=True)
    audio = torch.nn.functional.pad(audio, (0, max(0, size - audio.shape[-1])))
    frames, window = audio.unfold(-1, size, size // 2), torch.hann_window(size)
    power = torch.zeros(size // 2 + 1, dtype=torch.float64)
    for some in frames.split(FRAMES_AT_ONCE, 1):
        power += torch.fft.rfft(some * window).abs().square().double().sum((0, 1))
    return power / frames.shape[:2].numel()


def spectral_shape(power: Tensor, sample_rate: int) -> dict[str, float]:
    """Centroid, bandwidth, rolloff and flatness of a power spectrum (bins,), 0 Hz left out."""
    frequency = torch.linspace(0, sample_rate / 2, len(power), dtype=power.dtype)[1:]
    power = power[1:]
    total = power.sum()
    if not total > 0:
        return dict.fromkeys(("centroid", "bandwidth", "rolloff", "flatness"), math.nan)
    share = power / total
    centroid = (share * frequency).sum()
    relative = power / power.mean() + FLATNESS_FLOOR
    return {
        "centroid": float(centroid),
        "bandwidth": float((share * (frequency - centroid).square()).sum().sqrt()),
        "rolloff": float(frequency[(share.cumsum(0) >= ROLLOFF).int().argmax()]),
        "flatness": float(relative.log().mean().exp() / relative.mean()),
    }


def _stereo(audio: Tensor) -> dict[str, float]:
    """Of the first two channels."""
    if len(audio) == 1:
        return {"stereo_width": 0.0, "stereo_correlation": 1.0}
    left, right = audio[0], audio[1]
    power = 2 * (left.square().sum() + right.square().sum())
    width = (left - right).square().sum() / power
    left, right = left - left.mean(), right - right.mean()
    correlation = (left * right).sum() / (left.square().sum() * right.square().sum()).sqrt()
    return {"stereo_width": float(width), "stereo_correlation": float(correlation)}
