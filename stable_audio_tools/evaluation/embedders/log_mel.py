"""`log_mel`: statistics of a log-mel spectrogram over time. No weights, no download; the same numbers everywhere.

It hears timbre, level and how both move, and not which words or notes follow each other. Numbers of two recipes do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.spectrogram import mel_filterbank
from stable_audio_tools.nn.exact import no_autocast

from .base import recipe_hash

SAMPLE_RATE = 32000  # chosen: up to 16 kHz is heard; above it there is little energy, and older files have none
WINDOW, HOP, BANDS = 1024, 512, 64  # 32 ms and 16 ms
FLOOR = 1e-8  # chosen: -80 dB of a full-scale sine, above the rounding noise of 16-bit files


class LogMelStatistics:
    """Of each band's log10 power over the clip: mean, standard deviation, and root mean square of the change between frames.

    Channels are averaged. A clip shorter than a window is followed by silence.
    """

    name, sample_rate = "log_mel", SAMPLE_RATE

    @property
    def recipe(self) -> Mapping[str, Any]:
        values = {
            "embedder": self.name,
            "sample_rate": SAMPLE_RATE,
            "window": f"hann {WINDOW}",
            "hop": HOP,
            "mels": BANDS,
            "floor": FLOOR,
            "statistics": "mean, deviation, change",
        }
        return {**values, "hash": recipe_hash(values)}

    @cached_property
    def _bank(self) -> Tensor:
        """(bins, bands); a full-scale sine has a power of about 1."""
        return mel_filterbank(SAMPLE_RATE, WINDOW, BANDS).T / (torch.hann_window(WINDOW).sum() / 2).square()

    def embed(self, audio: Tensor) -> Tensor:
        mono = to_channels(audio.detach().to("cpu", torch.float32), 1)[0]
        mono = torch.nn.functional.pad(mono, (0, max(0, WINDOW + HOP - len(mono))))
        with no_autocast(mono):
            spectrum = torch.fft.rfft(mono.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW))
            level = (spectrum.abs().square() @ self._bank + FLOOR).log10()
        return torch.cat((level.mean(0), level.std(0, correction=0), level.diff(dim=0).square().mean(0).sqrt()))
