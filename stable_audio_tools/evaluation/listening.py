"""What is heard in a batch of clips: note, instrument, loudness and silence, by means fitted on labelled real sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .clips import finite_clips, with_noise
from .instrument import InstrumentClassifier, instrument_features
from .loudness import level_db, silence_share
from .pitch import PitchEstimate, estimate_pitch

BATCH = 16
# Calibration sounds get white noise at 5 to 45 dB below them: a generated sound is never as clean as a synthetic one.
_CALIBRATION_SNR_DB = (5.0, 45.0)

Labels = Mapping[str, Any]


@dataclass(frozen=True)
class Heard:
    """Measurements of B clips. finite: (B,) bool. instruments: None where a clip is not finite. level_db, silence: (B,)."""

    finite: Tensor
    pitch: PitchEstimate
    instruments: tuple[str | None, ...]
    level_db: Tensor
    silence: Tensor

    def take(self, clips: Sequence[int]) -> Heard:
        """The measurements of some of the clips."""
        i = torch.tensor(clips, dtype=torch.long)
        pitch = PitchEstimate(*(values[i] for values in self.pitch))
        return Heard(self.finite[i], pitch, tuple(self.instruments[k] for k in clips), self.level_db[i], self.silence[i])


@dataclass(frozen=True)
class Listener:
    """Measures clips of one sample rate. levels_db: what each loudness word means, in dBFS."""

    classifier: InstrumentClassifier
    levels_db: Mapping[str, float]
    sample_rate: int

    @classmethod
    def fit(cls, audio: Sequence[Tensor], labels: Sequence[Labels], sample_rate: int, generator: torch.Generator) -> Listener:
        """From real sounds.

        Args:
            audio: (C, T) clips of one shape.
            labels: each clip's `instrument` and `loudness`.
            generator: of the noise that is added for the instrument classifier.
        """
        features, levels = [], []
        low, high = _CALIBRATION_SNR_DB
        for start in range(0, len(audio), BATCH):
            batch = torch.stack(list(audio[start : start + BATCH]))
            snr_db = low + (high - low) * torch.rand(len(batch), generator=generator)
            features.append(instrument_features(with_noise(batch, snr_db, generator), sample_rate))
            levels.append(level_db(batch, sample_rate))
        by_word: dict[str, list[float]] = {}
        for label, value in zip(labels, torch.cat(levels).tolist(), strict=True):
            by_word.setdefault(label["loudness"], []).append(value)
        classifier = InstrumentClassifier.fit(torch.cat(features), [label["instrument"] for label in labels])
        return cls(classifier, {word: sum(values) / len(values) for word, values in by_word.items()}, sample_rate)

    def listen(self, audio: Tensor) -> Heard:
        """Measure (B, C, T) audio; clips with a NaN, and silent ones, are measured as what they are: nothing."""
        parts = [self._listen(batch) for batch in audio.split(BATCH)]
        return Heard(
            torch.cat([part.finite for part in parts]),
            PitchEstimate(*(torch.cat(values) for values in zip(*(part.pitch for part in parts), strict=True))),
            tuple(name for part in parts for name in part.instruments),
            torch.cat([part.level_db for part in parts]),
            torch.cat([part.silence for part in parts]),
        )

    def _listen(self, audio: Tensor) -> Heard:
        finite = finite_clips(audio).cpu()
        names = self.classifier.predict(instrument_features(audio, self.sample_rate))
        sounds = finite & (level_db(audio, self.sample_rate) > -torch.inf)
        return Heard(
            finite,
            estimate_pitch(audio, self.sample_rate),
            tuple(name if heard else None for name, heard in zip(names, sounds.tolist(), strict=True)),
            level_db(audio, self.sample_rate),
            silence_share(audio, self.sample_rate),
        )
