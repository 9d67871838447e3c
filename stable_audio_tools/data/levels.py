"""What is done about loudness and silence: options that dataset configs of audio share, and the functions that carry them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from stable_audio_tools.audio.io import peak_level
from stable_audio_tools.audio.loudness import LOWEST_RATE, can_measure, loudness_lufs
from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem

QUIET = 1e-6  # mean square; upstream's: what is below -60 dB is left as it is, since only its noise would become louder
HEADROOM = 0.95  # upstream's: the peak of a clip that its new level would take beyond full scale

Measure = Literal["lufs", "rms", "peak"]


class SoundOptions(StrictModel):
    """What a dataset of audio says about loudness and silence; a config derives from it."""

    volume_norm: bool | Measure = Field(
        False, description='bring clips to a level: "lufs" (true means it), "rms" or "peak"; clips below -60 dB RMS stay as they are'
    )
    volume_norm_param: tuple[float, NonNegativeFloat] = Field(
        (-16.0, 2.0), description="that level in LUFS, or in dB of full scale, and how many dB it is drawn to either side"
    )
    volume_norm_max_gain_db: NonNegativeFloat | None = Field(None, description="clips are not made louder by more; default: no limit")
    remove_silence: bool = Field(False, description="shorten long silence; each visit then reads the whole file")
    silence_threshold: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.01, 0.5), description="remove_silence: the amplitude below which it is silent, and the seconds of it that stay"
    )
    max_silence_duration: NonNegativeFloat = Field(0.25, description="remove_silence: seconds of silence that are left alone")

    @model_validator(mode="after")
    def _sound_settings_act(self) -> Self:
        switches = {
            "remove_silence": ("silence_threshold", "max_silence_duration"),
            "volume_norm": ("volume_norm_param", "volume_norm_max_gain_db"),
        }
        if problems := [*idle_settings(self, switches)]:
            raise ConfigError(problems)
        return self

    def sound_problems(self, sample_rate: int, channels: int) -> Iterator[Problem]:
        """What does not fit clips of this rate and number of channels."""
        if self.volume_norm in (True, "lufs") and not can_measure(sample_rate, channels):
            message = (
                f"loudness in LUFS is of mono or stereo at {LOWEST_RATE} Hz or more, and clips have {channels} channels at {sample_rate} Hz"
            )
            yield Problem(("volume_norm",), message, 'use "rms" or "peak"', self.volume_norm)

    def levelled(self, audio: Tensor, sample_rate: int, draw: float) -> Tensor:
        """(C, T) at the level that the options ask for.

        Args:
            draw: in [0, 1), where in its range the level lies.
        """
        if not self.volume_norm:
            return audio
        target_db, spread_db = self.volume_norm_param
        measure: Measure = "lufs" if self.volume_norm is True else self.volume_norm
        return at_level(audio, sample_rate, measure, target_db + (2 * draw - 1) * spread_db, self.volume_norm_max_gain_db)

    def shortened(self, audio: Tensor, sample_rate: int) -> Tensor:
        """(C, T) with long silence shortened, if the options ask for it."""
        if not self.remove_silence:
            return audio
        amplitude, kept_s = self.silence_threshold
        return shorten_silence(audio, amplitude, round(self.max_silence_duration * sample_rate), round(kept_s * sample_rate))


def idle_settings(config: StrictModel, switches: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Settings that could not take effect, since the switch that they belong to is off; defaults that are written out do no harm."""
    for switch, keys in switches.items():
        for key in keys:
            if not getattr(config, switch) and getattr(config, key) != type(config).model_fields[key].default:
                yield Problem((key,), f"has no effect without {switch}", f'set "{switch}": true, or remove it', on_key=True)


def at_level(audio: Tensor, sample_rate: int, measure: Measure, level_db: float, max_gain_db: float | None = None) -> Tensor:
    """(C, T) on the CPU, brought to a level by one gain; as it is where its mean square is below -60 dB.

    The gain is never so large that samples pass full scale: such a clip gets a peak of 0.95.
    """
    power = float(audio.double().square().mean())
    if not power >= QUIET:
        return audio
    gain_db = level_db - _level_db(audio, sample_rate, measure, power)
    gain = 10 ** (min(gain_db, math.inf if max_gain_db is None else max_gain_db) / 20)
    peak = peak_level(audio)
    return audio * (HEADROOM / peak if peak * gain > 1 else gain)


def _level_db(audio: Tensor, sample_rate: int, measure: Measure, power: float) -> float:
    if measure == "peak":
        return 20 * math.log10(peak_level(audio))
    rms_db = 10 * math.log10(power)
    lufs = loudness_lufs(audio, sample_rate) if measure == "lufs" else rms_db
    return lufs if math.isfinite(lufs) else rms_db  # all below the gate of -70 LUFS: rumble that no ear hears


def shorten_silence(audio: Tensor, amplitude: float, longest: int, kept: int) -> Tensor:
    """(C, T) with less silence: of each silent stretch of more than `longest` samples, `kept` stay, those next to the sound.

    Args:
        amplitude: silent are samples below it in every channel.
    """
    starts, stops = _stretches(audio.abs().amax(0) < amplitude)
    long = (stops - starts > longest) & (stops - starts > kept)
    if not long.any():
        return audio
    changes = torch.zeros(audio.shape[-1] + 1, dtype=torch.int32)
    before = torch.where(starts[long] > 0, torch.where(stops[long] < audio.shape[-1], kept - kept // 2, kept), 0)
    changes[starts[long] + before] += 1
    changes[stops[long] - (kept - before)] -= 1
    return audio[:, changes[:-1].cumsum(0) == 0]


def _stretches(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) bool to the starts and the ends of its stretches of True."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1, dtype=torch.int32), append=torch.zeros(1, dtype=torch.int32))
    return (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
