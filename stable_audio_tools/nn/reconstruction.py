"""How far a reconstruction is from its original: spectra at several resolutions, mel spectra, samples.

Everywhere `target` is the original and `estimate` the reconstruction, both (B, C, T) audio in [-1, 1]; gradients flow to the
estimate alone, so the target's side has no graph. Spectral convergence is relative to the *target's* energy, as its authors define
it (arXiv:1808.06719); upstream calls it with the two exchanged, so its loss rewards loud reconstructions.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.exact import at_least_single
from stable_audio_tools.nn.filters import a_weighting_fir, mel_filterbank
from stable_audio_tools.nn.spectra import (
    MagnitudeWeights,
    ShortTime,
    complex_distance,
    magnitude_distance,
    signals,
    spectral_convergence,
)

WINDOWS = Literal["hann_window", "hamming_window", "blackman_window", "bartlett_window"]
MEL_FLOOR = 1e-5  # of mel magnitudes under a logarithm, as in descript-audio-codec
FFT_STEP = 2048  # chosen: transforms of a length with small factors only are several times faster


class SpectralParams(StrictModel):
    """Multi-resolution STFT loss (arXiv:1910.11480): resolutions, and what is compared at each."""

    fft_sizes: tuple[PositiveInt, ...] = Field(min_length=1, description="transform lengths, one per resolution")
    hop_sizes: tuple[PositiveInt, ...] = Field(description="samples between frames")
    win_lengths: tuple[PositiveInt, ...] = Field(description="window lengths")
    window: WINDOWS = Field("hann_window", description="a window of torch")
    w_sc: float = Field(1.0, ge=0, description="weight of spectral convergence: distance relative to the original's energy")
    w_log_mag: float = Field(1.0, ge=0, description="weight of the distance of log magnitudes")
    w_lin_mag: float = Field(0.0, ge=0, description="weight of the distance of magnitudes")
    w_phs: float = Field(0.0, ge=0, description="weight of the distance of complex spectra, relative to their mean magnitude")
    w_sum: float = Field(1.0, ge=0, description="stereo: weight of left plus right")
    w_diff: float = Field(1.0, ge=0, description="stereo: weight of left minus right")
    scale: Literal["mel"] | None = Field(None, description="compare mel bands instead of bins")
    n_bins: PositiveInt | tuple[PositiveInt, ...] | None = Field(None, description="number of mel bands, in all or per resolution")
    perceptual_weighting: bool = Field(False, description="weight frequencies as hearing does (A-weighting)")
    scale_invariance: bool = Field(False, description="compare up to a gain")
    eps: float = Field(1e-8, gt=0, description="smallest power of a bin")
    mag_distance: Literal["L1", "L2"] = Field("L1", description="absolute or squared distance of magnitudes")
    log_eps: float = Field(0.0, ge=0, description="log(log_fac x + log_eps) is compared")
    log_fac: float = Field(1.0, gt=0, description="log(log_fac x + log_eps) is compared")
    reduction: Literal["mean", "sum"] = Field("mean", description="over the bins of magnitude distances")
    output: Literal["loss"] = Field("loss", description="accepted, no effect")
    retain_batch_dim: Literal[False] = Field(False, description="accepted, no effect")

    @model_validator(mode="after")
    def _resolutions_are_complete(self) -> Self:
        count = len(self.fft_sizes)
        listed = {"hop_sizes": self.hop_sizes, "win_lengths": self.win_lengths}
        if isinstance(self.n_bins, tuple):
            listed["n_bins"] = self.n_bins
        problems = [
            Problem((name,), f"{len(values)} entries for {count} fft_sizes", "give one per resolution")
            for name, values in listed.items()
            if len(values) != count
        ]
        problems += [
            Problem(("win_lengths", index), f"the window is longer than the transform of {size}", f"at most {size}", window)
            for index, (size, window) in enumerate(zip(self.fft_sizes, self.win_lengths, strict=False))
            if window > size
        ]
        if (self.scale is None) != (self.n_bins is None):
            given, missing = ("n_bins", "scale") if self.scale is None else ("scale", "n_bins")
            problems.append(Problem((given,), f"it has no effect without {missing}", f"give {missing} too, or neither", on_key=True))
        if not any((self.w_sc, self.w_log_mag, self.w_lin_mag, self.w_phs)):
            problems.append(Problem((), "w_sc, w_log_mag, w_lin_mag and w_phs are all 0: nothing is compared", "make one positive"))
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def min_samples(self) -> int:
        """The shortest audio, in samples, that the longest transform can be centred on."""
        return max(self.fft_sizes) // 2 + 1

    def bands(self, index: int) -> int | None:
        """Mel bands of one resolution; None for plain bins."""
        return self.n_bins[index] if isinstance(self.n_bins, tuple) else self.n_bins


class MultiResolutionSTFT(nn.Module):
    """The spectral loss of stereo or other audio.

    Stereo is compared as sum and difference (arXiv:2010.10291) and as left and right. The filter and the transform are linear: each
    channel is filtered and transformed once per resolution, and sum and difference are formed from the spectra.

    Args:
        params: what is compared.
        sample_rate: Hz.
    """

    fir: Tensor

    def __init__(self, params: SpectralParams, sample_rate: int):
        super().__init__()
        self.params, self.margin = params, max(params.fft_sizes) // 2
        if params.perceptual_weighting:
            self.register_buffer("fir", a_weighting_fir(sample_rate).to(torch.get_default_dtype()), persistent=False)
        self.resolutions = nn.ModuleList(Resolution(params, index, sample_rate) for index in range(len(params.fft_sizes)))

    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """Scalars by name: `mrstft` for all channels, or for stereo `mrstft` of sum and difference, and `stft_left`, `stft_right`.

        Raises:
            ValueError: the audio is shorter than `params.min_samples`, or the shapes differ.
        """
        self._check(target, estimate)
        with torch.autocast(target.device.type, enabled=False):  # logarithms of half-precision spectra are noise
            with torch.no_grad():
                target = self._reflected(self._weighted(target))
            estimate = self._reflected(self._weighted(estimate))
            distances = torch.stack([resolution(target, estimate, self.margin) for resolution in self.resolutions]).mean(0)
        if len(distances) == 1:
            return {"mrstft": distances[0]}
        total, difference, left, right = distances
        both = (self.params.w_sum * total + self.params.w_diff * difference) / 2
        return {"mrstft": both, "stft_left": left, "stft_right": right}

    def _check(self, target: Tensor, estimate: Tensor) -> None:
        if target.shape != estimate.shape:
            raise ValueError(f"original {tuple(target.shape)} and reconstruction {tuple(estimate.shape)} differ in shape")
        if target.shape[-1] < self.params.min_samples:
            raise ValueError(f"audio of {target.shape[-1]} samples is too short: the spectral loss needs {self.params.min_samples}")

    def _weighted(self, audio: Tensor) -> Tensor:
        """(B, C, T) in at least single precision, filtered where hearing is to be modelled."""
        audio = at_least_single(audio)
        return fir_filter(audio, self.fir) if self.params.perceptual_weighting else audio

    def _reflected(self, audio: Tensor) -> Tensor:
        """(B, C, T) to (2, B, T + 2 margin) for stereo, else (1, C B, T + 2 margin): the ends reflected once for all resolutions."""
        padded = F.pad(audio.transpose(0, 1), (self.margin, self.margin), mode="reflect")
        return padded if len(padded) == 2 else padded.flatten(0, 1)[None]


class Resolution(nn.Module):
    """The distances at one transform length, one for each signal that is compared."""

    window: Tensor
    mel: Tensor

    def __init__(self, params: SpectralParams, index: int, sample_rate: int):
        super().__init__()
        self.params = params
        self.fft_size, self.hop_size = params.fft_sizes[index], params.hop_sizes[index]
        window = getattr(torch, params.window)(params.win_lengths[index], dtype=torch.float64)
        self.register_buffer("window", _centred(window, self.fft_size).to(torch.get_default_dtype()), persistent=False)
        self.bands = params.bands(index)
        if self.bands is not None:
            mel = mel_filterbank(sample_rate, self.fft_size, self.bands)
            if empty := int((mel.sum(1) == 0).sum()):
                what = f"{empty} of {self.bands} mel bands hold no bin of a transform of {self.fft_size} at {sample_rate} Hz"
                raise ConfigError([Problem(("n_bins",), what, "give fewer bands")])
            self.register_buffer("mel", mel.to(torch.get_default_dtype()), persistent=False)

    def forward(self, target: Tensor, estimate: Tensor, margin: int) -> Tensor:
        """(S,) distances of S signals: sum, difference, left and right of stereo, or of all channels as one.

        Args:
            target: (P, N, T + 2 margin), of which this transform needs half its length on both sides.
            estimate: the same.
        """
        transform = ShortTime(self.window.to(estimate.dtype), self.hop_size)
        inset = margin - self.fft_size // 2
        target, estimate = (audio[..., inset : audio.shape[-1] - inset] for audio in (target, estimate))
        if self._is_plain and not torch.compiler.is_compiling():  # a compiler fuses the formula by itself
            params = self.params
            weights = MagnitudeWeights(params.w_sc, params.w_log_mag, params.w_lin_mag, math.sqrt(params.eps))
            return magnitude_distance(target, estimate, transform, weights)
        with torch.no_grad():
            wanted = signals(transform(target))
        return self._distance(wanted, signals(transform(estimate)))

    @property
    def _is_plain(self) -> bool:
        """Whether only magnitudes of bins are compared, in absolute distance: the case with a gradient of its own."""
        params = self.params
        changed = (params.scale, params.scale_invariance, params.w_phs, params.log_eps)
        return not any(changed) and params.mag_distance == "L1" and params.reduction == "mean"

    def _distance(self, wanted: Tensor, given: Tensor) -> Tensor:
        params, distance = self.params, given.real.new_zeros(len(given))
        if params.w_phs:
            distance = params.w_phs * complex_distance(wanted, given)
        wanted, given = self._magnitude(wanted), self._magnitude(given)
        if params.scale_invariance:
            wanted = wanted * ((given * wanted).sum((-2, -1), keepdim=True) / wanted.square().sum((-2, -1), keepdim=True))
        if params.w_sc:
            distance = distance + params.w_sc * spectral_convergence(wanted, given)
        if params.w_log_mag:
            distance = distance + params.w_log_mag * self._reduced(self._log(given) - self._log(wanted))
        if params.w_lin_mag:
            distance = distance + params.w_lin_mag * self._reduced(given - wanted)
        return distance

    def _magnitude(self, spectra: Tensor) -> Tensor:
        magnitude = spectra.abs().clamp(min=math.sqrt(self.params.eps))
        return magnitude if self.bands is None else magnitude @ self.mel.to(magnitude.dtype).mT

    def _log(self, magnitude: Tensor) -> Tensor:
        return torch.log(self.params.log_fac * magnitude + self.params.log_eps)

    def _reduced(self, difference: Tensor) -> Tensor:
        distance = difference.abs() if self.params.mag_distance == "L1" else difference.square()
        return distance.mean((1, 2, 3)) if self.params.reduction == "mean" else distance.sum((1, 2, 3))


def _centred(window: Tensor, size: int) -> Tensor:
    """The window with zeros around it, `size` in all."""
    before = (size - len(window)) // 2
    return F.pad(window, (before, size - len(window) - before))


def fir_filter(audio: Tensor, taps: Tensor) -> Tensor:
    """(B, C, T) through a symmetric FIR of odd length; the length stays, outside of the audio is silence."""
    size = -(-(audio.shape[-1] + len(taps) - 1) // FFT_STEP) * FFT_STEP
    spectrum = torch.fft.rfft(audio, size) * torch.fft.rfft(taps.to(audio.dtype), size)
    return torch.fft.irfft(spectrum, size)[..., len(taps) // 2 :][..., : audio.shape[-1]]


class MelParams(StrictModel):
    """Mel spectra at several window lengths, hop a quarter of the window (as in descript-audio-codec, arXiv:2306.06546)."""

    n_mels: tuple[PositiveInt, ...] = Field(min_length=1, description="mel bands, one number per window length")
    window_lengths: tuple[PositiveInt, ...] = Field(description="window and transform lengths")
    pow: float = Field(gt=0, description="power of the magnitudes under the logarithm")
    log_weight: float = Field(ge=0, description="weight of the distance of logarithms")
    mag_weight: float = Field(ge=0, description="weight of the distance of magnitudes")

    @model_validator(mode="after")
    def _one_number_of_bands_per_window(self) -> Self:
        if len(self.n_mels) != len(self.window_lengths):
            what = f"{len(self.n_mels)} entries for {len(self.window_lengths)} window_lengths"
            raise ConfigError([Problem(("n_mels",), what, "give one per window length")])
        if not (self.log_weight or self.mag_weight):
            raise ConfigError([Problem((), "log_weight and mag_weight are both 0: nothing is compared", "make one positive")])
        return self

    @property
    def min_samples(self) -> int:
        return max(self.window_lengths) // 2 + 1


class MultiResolutionMel(nn.Module):
    """Sum over the window lengths of the mean absolute distances of log10 and plain mel magnitudes."""

    def __init__(self, params: MelParams, sample_rate: int):
        super().__init__()
        self.params = params
        for index, (bands, length) in enumerate(zip(params.n_mels, params.window_lengths, strict=True)):
            mel, window = mel_filterbank(sample_rate, length, bands), torch.hann_window(length, dtype=torch.float64)
            self.register_buffer(f"mel_{index}", mel.to(torch.get_default_dtype()), persistent=False)
            self.register_buffer(f"window_{index}", window.to(torch.get_default_dtype()), persistent=False)

    def forward(self, target: Tensor, estimate: Tensor) -> Tensor:
        """Scalar distance of two (B, C, T)."""
        total = torch.zeros((), device=target.device)
        with torch.autocast(target.device.type, enabled=False):  # as in MultiResolutionSTFT
            for index in range(len(self.params.n_mels)):
                with torch.no_grad():
                    wanted = self._mel(target, index)
                given = self._mel(estimate, index)
                total = total + self.params.log_weight * (self._log(given) - self._log(wanted)).abs().mean()
                total = total + self.params.mag_weight * (given - wanted).abs().mean()
        return total

    def _mel(self, audio: Tensor, index: int) -> Tensor:
        audio = at_least_single(audio)
        window = self.get_buffer(f"window_{index}").to(audio.dtype)
        spectrum = torch.stft(audio.flatten(0, 1), len(window), len(window) // 4, window=window, return_complex=True)
        return self.get_buffer(f"mel_{index}").to(audio.dtype) @ spectrum.abs()

    def _log(self, mel: Tensor) -> Tensor:
        return self.params.pow * mel.clamp(min=MEL_FLOOR).log10()
