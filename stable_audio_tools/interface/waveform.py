"""A sound as a waveform over which a part can be chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_audio_tools.audio.io import load_audio

BARS = 400


def waveform(path: Path | None, seconds: float) -> dict[str, Any]:
    """What the page draws: the length of the clip and of the sound in it, peaks from 0 to 1, and the part to begin with.

    That part is what the sound leaves of the clip, or else the middle third.

    Raises:
        ConfigError: the sound cannot be read.
    """
    if path is None:
        return {"seconds": seconds, "sound": 0.0, "peaks": [], "start": None, "end": None}
    audio, rate = load_audio(path)
    length = min(audio.shape[-1], max(1, round(seconds * rate)))
    peaks = [float(part.abs().max()) for part in audio[:, :length].nan_to_num(0, 0, 0).chunk(BARS, dim=-1)]
    loudest = max(max(peaks), 1e-4)
    sound = length / rate
    start, end = (sound, seconds) if sound < 0.98 * seconds else (seconds / 3, 2 * seconds / 3)
    return {
        "seconds": seconds,
        "sound": sound,
        "peaks": [round(peak / loudest, 3) for peak in peaks],
        "start": round(start, 3),
        "end": round(end, 3),
    }
