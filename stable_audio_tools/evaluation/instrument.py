"""Which instrument a clip sounds like, by a few spectral features and the nearest class in Mahalanobis distance.

The classifier is fitted on labelled real sounds at evaluation time, so it knows what the dataset means by its names. The
features have floors: what lies 25 dB below the strongest is treated as absent, else faint noise would decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .clips import block_energy, sounding_part, to_mono
from .pitch import pitch_of, spectrum

ANALYSED_S = 4.0
_HARMONICS = 8
_HARMONIC_FLOOR, _REST_FLOOR = 3e-3, 3e-2
_BLOCK_S = 0.01
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SHRINKAGE = 0.02  # of the covariance towards its diagonal; chosen: enough to invert it with a few dozen clips a class


def instrument_features(audio: Tensor, sample_rate: int) -> Tensor:
    """(B, C, T) or (B, T) to (B, D) float64: harmonic shares, what is not harmonic, flatness, fading and envelope.

    Looks at the first four seconds from the sound's onset. Accepts NaN and silence, whose features mean nothing.
    """
    mono = sounding_part(to_mono(audio), sample_rate, ANALYSED_S)
    whole = spectrum(mono, sample_rate)
    pitch = pitch_of(whole).frequency_hz
    numbers = torch.arange(1, _HARMONICS + 1)
    shares = whole.share_at(pitch, numbers)
    third = max(1, mono.shape[-1] // 3)
    fading = [_upper(spectrum(part, sample_rate).share_at(pitch, numbers)) for part in (mono[:, :third], mono[:, -third:])]
    features = (
        (shares + _HARMONIC_FLOOR).log(),
        ((1 - shares.sum(-1, keepdim=True)).clamp_min(0) + _REST_FLOOR).log(),
        _flatness(whole.power)[:, None],
        fading[0] - fading[1],
        _energy_times(mono, sample_rate),
    )
    return torch.cat([part.double() for part in features], -1)


def _upper(shares: Tensor) -> Tensor:
    """(B, H) to (B, 1): log of the share above the fundamental."""
    return (shares[:, 1:].sum(-1, keepdim=True) + _REST_FLOOR).log()


def _flatness(power: Tensor) -> Tensor:
    """(B, F) to (B,): log of geometric over arithmetic mean, with a floor."""
    relative = power / power.mean(-1, keepdim=True).clamp_min(1e-30)
    return (relative + _HARMONIC_FLOOR).log().mean(-1)


def _energy_times(mono: Tensor, sample_rate: int) -> Tensor:
    """(B, Q): when given shares of the energy have passed, relative to the length looked at."""
    energy = block_energy(mono, max(1, round(_BLOCK_S * sample_rate))).cumsum(-1)
    passed = energy[:, None] >= torch.tensor(_QUANTILES)[:, None] * energy[:, None, -1:]
    return passed.int().argmax(-1) / energy.shape[-1]


@dataclass(frozen=True)
class InstrumentClassifier:
    """Nearest centroid under one covariance shared by the classes.

    labels: K names. centroids: (K, D) and whitening: (D, D), both float64.
    """

    labels: tuple[str, ...]
    centroids: Tensor
    whitening: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Sequence[str]) -> InstrumentClassifier:
        """From (N, D) features of labelled real sounds.

        Raises:
            ValueError: not one label a row, or too few rows to tell how the classes vary.
        """
        if len(features) != len(labels):
            raise ValueError(f"{len(features)} rows of features for {len(labels)} labels")
        names = tuple(dict.fromkeys(labels))
        if len(labels) < 2 * len(names):
            raise ValueError(f"{len(labels)} sounds are too few for {len(names)} instruments; give at least two of each")
        classes = torch.tensor([names.index(label) for label in labels])
        centroids = torch.stack([features[classes == k].mean(0) for k in range(len(names))])
        within = features - centroids[classes]
        covariance = within.T @ within / (len(labels) - len(names))
        spread = covariance.diagonal().clamp_min(1e-6)
        covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * torch.diag(spread) + 1e-6 * torch.eye(len(spread), dtype=torch.float64)
        return cls(names, centroids, torch.linalg.inv(torch.linalg.cholesky(covariance)).T)

    def predict(self, features: Tensor) -> list[str]:
        """The nearest instrument of each row of (B, D) features."""
        distances = torch.cdist(features @ self.whitening, self.centroids @ self.whitening)
        return [self.labels[k] for k in distances.argmin(-1).tolist()]
