"""How loud a clip is written: its loudness, and what becomes of a peak over full scale."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import Tensor

from stable_audio_tools.audio.loudness import can_measure, loudness_lufs

log = logging.getLogger(__name__)


def levelled(audio: Tensor, sample_rate: int, *, normalize: str, loudness: float | None) -> tuple[Tensor, dict[str, Any]]:
    """The clip (C, T) as it is to be written, and what was done to it.

    First it is brought to `loudness` (LUFS), if that is asked for; then its peak to full scale, if `normalize` says so ("over": only
    where it lies over it). The same gain acts on all of it. Silence stays silence.

    Returns:
        the audio, and `peak` (of what the model made), with `gain_db` where there was a gain.
    """
    peak = float(audio.abs().nan_to_num(0, posinf=0).max())
    gain = 1.0
    if loudness is not None and math.isfinite(measured := loudness_lufs(audio, sample_rate)):
        gain = 10 ** ((loudness - measured) / 20)
    if peak > 0 and (normalize == "always" or (normalize == "over" and gain * peak > 1)):
        gain = 1 / peak
    facts: dict[str, Any] = {"peak": round(peak, 4)}
    if gain == 1.0:
        return audio, facts
    return audio * gain, facts | {"gain_db": round(20 * math.log10(gain), 2)}


def cannot_level(sample_rate: int, channels: int) -> str:
    """Why loudness cannot be measured; "": it can."""
    return "" if can_measure(sample_rate, channels) else f"loudness of {channels} channels at {sample_rate} Hz is not defined"
