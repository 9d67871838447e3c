"""Metrics of validation, the `eval_loss_configs` of an autoencoder: distances of spectra, SI-SDR and PESQ. None of them has a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.evaluation.pair_scores import PESQ_RATES, PESQ_SECONDS, pesq_of_channels, si_sdr
from stable_audio_tools.nn.reconstruction import WINDOWS, MultiResolutionSTFT, SpectralParams

PLURAL = {"fft_sizes": "fft_size", "hop_sizes": "hop_size", "win_lengths": "win_length"}


class SpectrumMetricConfig(StrictModel):
    """The distance of spectra at one resolution; keys as in `loss_configs.spectral.config`."""

    fft_size: PositiveInt = Field(1024, description="transform length")
    hop_size: PositiveInt = Field(256, description="samples between frames")
    win_length: PositiveInt = Field(1024, description="window length")
    window: WINDOWS = Field("hann_window", description="a window of torch")
    w_sc: float = Field(1.0, ge=0, description="weight of spectral convergence")
    w_log_mag: float = Field(1.0, ge=0, description="weight of the distance of log magnitudes")
    w_lin_mag: float = Field(0.0, ge=0, description="weight of the distance of magnitudes")
    w_phs: float = Field(0.0, ge=0, description="weight of the distance of complex spectra")
    perceptual_weighting: bool = Field(False, description="weight frequencies as hearing does (A-weighting)")
    scale_invariance: bool = Field(False, description="compare up to a gain")
    eps: float = Field(1e-8, gt=0, description="smallest power of a bin")
    mag_distance: Literal["L1", "L2"] = Field("L1", description="absolute or squared distance of magnitudes")
    log_eps: float = Field(0.0, ge=0, description="log(log_fac x + log_eps) is compared")
    log_fac: float = Field(1.0, gt=0, description="log(log_fac x + log_eps) is compared")
    reduction: Literal["mean", "sum"] = Field("mean", description="over the bins of magnitude distances")

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        try:
            self.params()
        except ConfigError as error:
            raise ConfigError([replace(p, path=self.own_path(p.path)) for p in error.problems]) from None
        return self

    def params(self) -> SpectralParams:
        """The same as a loss of one resolution."""
        sizes: dict[str, Any] = {name: (getattr(self, own),) for name, own in PLURAL.items()}
        shared = self.model_dump(include=SpectralParams.model_fields.keys() & SpectrumMetricConfig.model_fields.keys())
        return validate(SpectralParams, {**sizes, **shared, **self._bands()}, "metric")

    def own_path(self, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """The place in this block that a place in `params` came from."""
        return (PLURAL.get(str(path[0]), path[0]),) if path else ()

    def _bands(self) -> dict[str, Any]:
        return {}


class STFTMetricConfig(SpectrumMetricConfig):
    """Distance of spectra."""

    scale: Literal["mel"] | None = Field(None, description="compare mel bands instead of bins")
    n_bins: PositiveInt | None = Field(None, description="number of mel bands")

    def _bands(self) -> dict[str, Any]:
        return {"scale": self.scale, "n_bins": self.n_bins}


class MelMetricConfig(SpectrumMetricConfig):
    """Distance of mel spectra."""

    n_mels: PositiveInt = Field(128, description="number of mel bands")

    def own_path(self, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return ("n_mels",) if path == ("n_bins",) else super().own_path(path)

    def _bands(self) -> dict[str, Any]:
        return {"scale": "mel", "n_bins": self.n_mels}


class SISDRConfig(StrictModel):
    """Scale-invariant ratio of signal to distortion (arXiv:1811.02508), in dB: more is better."""

    zero_mean: bool = Field(True, description="leave out each channel's mean")
    eps: float = Field(1e-8, gt=0, description="added to energies")
    reduction: Literal["mean"] = Field("mean", description="over clips and channels")


class PESQConfig(StrictModel):
    """Perceptual evaluation of speech quality, 1 to 4.6; needs the package pesq. Wideband from 16 kHz on, narrowband below."""


class EvaluationConfig(StrictModel):
    """What validation also computes, each logged as `val/<key>`. A key left out is a metric left out."""

    stft: STFTMetricConfig = Field(None)  # type: ignore[assignment]  # null says neither yes nor no, so it is refused
    mel: MelMetricConfig = Field(None)  # type: ignore[assignment]
    sisdr: SISDRConfig = Field(None)  # type: ignore[assignment]
    pesq: PESQConfig = Field(None)  # type: ignore[assignment]

    def audio_problems(self, sample_rate: int, sample_size: int) -> Iterator[Problem]:
        """What does not fit clips of `sample_size` samples at `sample_rate` Hz."""
        for name, config in self.spectra.items():
            yield from _spectrum_problems(name, config, sample_rate, sample_size)
        if self.pesq is not None:
            yield from _pesq_problems(sample_rate, sample_size)

    @property
    def spectra(self) -> dict[str, SpectrumMetricConfig]:
        return {name: config for name, config in (("stft", self.stft), ("mel", self.mel)) if config is not None}

    def build(self, sample_rate: int) -> Evaluation:
        """The metrics of audio at `sample_rate` Hz."""
        return Evaluation(self, sample_rate)


def _spectrum_problems(name: str, config: SpectrumMetricConfig, sample_rate: int, sample_size: int) -> Iterator[Problem]:
    shortest = config.params().min_samples
    if sample_size < shortest:
        fix = f"raise sample_size to at least {shortest}, or use a smaller fft_size"
        yield Problem((name,), f"{sample_size} samples are too short for a transform of {config.fft_size}", fix, on_key=True)
    try:
        MultiResolutionSTFT(config.params(), sample_rate)
    except ConfigError as error:
        for problem in error.problems:
            yield replace(problem, path=(name, *config.own_path(problem.path)))


def _pesq_problems(sample_rate: int, sample_size: int) -> Iterator[Problem]:
    if find_spec("pesq") is None:
        yield Problem(
            ("pesq",), "needs the package pesq, which is not installed", 'pip install -e ".[pesq]", or remove the key', on_key=True
        )
    if sample_rate < min(PESQ_RATES):
        yield Problem(
            ("pesq",), f"is defined for at least {min(PESQ_RATES)} Hz, the audio has {sample_rate}", "remove the key", on_key=True
        )
    if sample_size < PESQ_SECONDS * sample_rate:
        what = f"needs at least {PESQ_SECONDS} s, sample_size is {sample_size / sample_rate:.3f} s"
        yield Problem(("pesq",), what, "raise sample_size, or remove the key", on_key=True)


class Score(NamedTuple):
    """value: scalar, the mean of a metric. signals: over how many clips or channels; 0 where none can be judged."""

    value: Tensor
    signals: int


class Evaluation(nn.Module):
    """Metrics by name of originals and reconstructions."""

    def __init__(self, config: EvaluationConfig, sample_rate: int):
        super().__init__()
        self.config, self.sample_rate = config, sample_rate
        losses = {name: MultiResolutionSTFT(metric.params(), sample_rate) for name, metric in config.spectra.items()}
        self.spectra = nn.ModuleDict(losses)

    @torch.no_grad()
    def forward(self, target: Tensor, estimate: Tensor) -> dict[str, Score]:
        """Scores of two (B, C, T); each channel is judged by itself."""
        clips = len(target)
        found = {name: Score(_of_channels(loss, target, estimate), clips) for name, loss in self.spectra.items()}
        if (sisdr := self.config.sisdr) is not None:
            found["sisdr"] = Score(si_sdr(target, estimate, zero_mean=sisdr.zero_mean, eps=sisdr.eps).mean(), clips)
        if self.config.pesq is not None:
            found["pesq"] = pesq_score(target, estimate, self.sample_rate)
        return found


def _of_channels(loss: nn.Module, target: Tensor, estimate: Tensor) -> Tensor:
    return loss(target.flatten(0, 1)[:, None], estimate.flatten(0, 1)[:, None])["mrstft"]


def pesq_score(target: Tensor, estimate: Tensor, sample_rate: int) -> Score:
    """Mean PESQ over clips and channels of (B, C, T); channels without an utterance have none and are left out.

    Raises:
        ModuleNotFoundError: the package pesq is not installed.
    """
    values = [value for pair in zip(target, estimate, strict=True) for value in pesq_of_channels(*pair, sample_rate)]
    mean = sum(values) / max(1, len(values))
    return Score(target.new_tensor(mean, dtype=torch.float32), len(values))
