"""What an audio file holds, and whether that can be used: a `Finding` says the first, whatever is asked of files, `Limits` the second.

Only the header and a few short stretches are read, unless more is asked for; short files are read whole.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from stable_audio_tools.audio.io import CONTAINERS, AudioInfo, can_make, peak_level, probe_short, read_part
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.captions import Metadata, read_sidecars
from stable_audio_tools.data.tags import read_tags

WHOLE = 65536  # frames up to which a file is read whole
STRETCH = 4096  # frames read at the start, in the middle and at the end of a longer one
BLOCK = 1 << 19  # frames read at once where all of a file is read
FULL_SCALE = 0.999  # of which a clipped sample has at least as much, chosen: 16 bits reach 0.99997
Reader = Callable[[int, int], Tensor]  # frames [start, stop) as (C, stop - start)
FLAT = 3  # equal samples in a row that a waveform has at full scale where it is clipped, chosen


@dataclass(frozen=True)
class Limits:
    """What a file must have to be used.

    min_seconds: length. silence_db: peak level below which audio is silent, in dB of full scale; None: silence is fine.
    channels: what its channels must turn into; None: anything.
    """

    min_seconds: float = 0.02
    silence_db: float | None = -60.0
    channels: int | None = None

    def silent(self, peak: float) -> bool:
        return self.silence_db is not None and peak < 10 ** (self.silence_db / 20)


class Sound(NamedTuple):
    """How audio sounds, as far as it was read.

    peak: the largest magnitude met. whole: all was read for it. thorough: all was read for the rest, too.
    clipped: samples in flat stretches at full scale. checksum: 64 bits of all samples, the same in whatever lossless file they are.
    """

    peak: float = 0.0
    whole: bool = False
    thorough: bool = False
    clipped: int = 0
    checksum: int = 0


class Finding(NamedTuple):
    """One file.

    info: its header; None where `damage` says why it cannot be read. inside, beside: metadata from its tags and from the
    files beside it. problems: what is wrong with these.
    """

    info: AudioInfo | None
    damage: str
    sound: Sound
    inside: Metadata
    beside: Metadata
    problems: tuple[str, ...]

    def suffices(self, limits: Limits, thorough: bool) -> bool:
        """Whether a new look at the unchanged file would find nothing else that matters; what went wrong may have been the disk."""
        if self.damage or self.problems:
            return False
        if thorough:
            return self.sound.thorough
        return self.sound.whole or not limits.silent(self.sound.peak)

    def unfit(self, path: str, limits: Limits) -> str:
        """Why the file cannot be used; nothing where it can."""
        return self.damage or (unfit(path, self.info, limits) if self.info else "") or _silence(self.sound, limits)


def look(path: str, sidecars: Mapping[str, str], limits: Limits, *, thorough: bool, tags: bool) -> Finding:
    """Look at one file.

    Args:
        sidecars: as `read_sidecars` takes them.
    """
    try:
        info, short = probe_short(path, WHOLE)
        sound = listen(_reader(path, info) if short is None else lambda start, stop: short[:, start:stop], info, limits, thorough=thorough)
    except ConfigError as error:
        return Finding(None, error.problems[0].message, Sound(), {}, {}, ())
    inside, damage = read_tags(path) if tags else ({}, [])
    beside, problems = read_sidecars(path, sidecars)
    return Finding(info, "", sound, inside, beside, (*damage, *problems))


def unfit(path: str, info: AudioInfo, limits: Limits) -> str:
    """Why a file cannot be used, by its header; nothing where it can."""
    extension = os.path.splitext(path)[1].lower()
    if info.container not in CONTAINERS[extension]:
        return f"wrong extension: it holds {info.container} ({info.codec})"
    if info.seconds < limits.min_seconds:
        return f"too short: {info.frames} samples, {info.seconds:.3f} s of at least {limits.min_seconds} s"
    if limits.channels and not can_make(limits.channels, info.channels):
        return f"{info.channels} channels, of which {limits.channels} cannot be made"
    return ""


def listen(read: Reader, info: AudioInfo, limits: Limits, *, thorough: bool) -> Sound:
    """Here and there; all of it while everything so far is silent.

    Raises:
        ConfigError: the audio cannot be decoded or is not finite.
    """
    blocks = [(start, min(start + BLOCK, info.frames)) for start in range(0, info.frames, BLOCK)]
    if thorough:
        return _throughout(read, info, blocks)
    if info.frames <= WHOLE:
        return Sound(_peak(read(0, info.frames), 0, info), whole=True)
    middle, last = info.frames // 2, info.frames - STRETCH
    peak = max(_peak(read(*part), part[0], info) for part in ((0, STRETCH), (middle, middle + STRETCH), (last, info.frames)))
    for start, stop in blocks:
        if not limits.silent(peak):
            return Sound(peak)
        peak = max(peak, _peak(read(start, stop), start, info))
    return Sound(peak, whole=True)


def _reader(path: str, info: AudioInfo) -> Reader:
    return lambda start, stop: read_part(path, info, info.sample_rate, start, stop)


def _throughout(read: Reader, info: AudioInfo, blocks: Sequence[tuple[int, int]]) -> Sound:
    peak, clipped, crc, adler = 0.0, 0, 0, 1
    for start, stop in blocks:
        audio = read(start, stop)
        loudest = _peak(audio, start, info)
        content = audio.numpy().T.tobytes()
        crc, adler = zlib.crc32(content, crc), zlib.adler32(content, adler)
        if loudest >= FULL_SCALE:
            clipped += _clipped(audio.numpy())
        peak = max(peak, loudest)
    return Sound(peak, True, True, clipped, crc << 32 | adler)


def _peak(audio: Tensor, start: int, info: AudioInfo) -> float:
    """Raises ConfigError where the audio, which starts at frame `start`, is not finite."""
    peak = peak_level(audio)
    if not math.isfinite(peak):
        first = int((~audio.isfinite()).any(0).nonzero()[0]) + start
        raise ConfigError(f"NaN or infinite samples, the first at {first / info.sample_rate:.2f} s")
    return peak


def _clipped(audio: np.ndarray) -> int:
    """Samples of (C, T) in flat stretches at full scale; what is beyond it counts as if limited, as it is where it is served."""
    limited = audio.clip(-1, 1)
    flat = (limited[:, 1:] == limited[:, :-1]) & (np.abs(limited[:, 1:]) >= FULL_SCALE)
    inner = flat[:, 1:] & flat[:, :-1]  # of three in a row, by their first
    counted = np.zeros(audio.shape, bool)
    for shift in range(FLAT):
        counted[:, shift : shift + inner.shape[1]] |= inner
    return int(counted.sum())


def _silence(sound: Sound, limits: Limits) -> str:
    return f"silent: no sample above {limits.silence_db:g} dB of full scale" if limits.silent(sound.peak) else ""
