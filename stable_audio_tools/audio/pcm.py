"""Parts of uncompressed WAV files by one read of exactly their bytes, with the same values as from libsndfile.

libsndfile converts sample by sample and is opened through several layers, which for a short crop costs ten times the read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from stable_audio_tools.audio.resample import Frames

HEADER = 4096  # bytes in which the audio of nearly every file begins; others are left to libsndfile
FORMATS = {  # libsndfile's name of a codec: the format tag of a WAV file and its bits
    "PCM_16": (1, 16),
    "PCM_24": (1, 24),
    "PCM_32": (1, 32),
    "FLOAT": (3, 32),
}
SCALES = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-31, "PCM_32": 2.0**-31, "FLOAT": 1.0}  # 24 bits are put at the top of 32
CODECS = {form: codec for codec, form in FORMATS.items()}
EXTENSIBLE_CHUNK = b"fmt \x28\0\0\0\xfe\xff"  # libsndfile calls such a file WAVEX
EXTENSIBLE = 0xFFFE  # the true tag is at the start of the subformat


class Layout(NamedTuple):
    """Where the audio of a WAV file lies. first: its offset, size: its length, both in bytes. tag, bits: of its format."""

    tag: int
    channels: int
    sample_rate: int
    bits: int
    first: int
    size: int


def read_pcm(path: str, codec: str, sample_rate: int, channels: int, start: int, stop: int) -> Frames | None:
    """Frames [start, stop) as (T, C) float32; None where the file is not so simple, or not what it is said to be."""
    if codec not in FORMATS or not hasattr(os, "pread"):
        return None
    frame_bytes = FORMATS[codec][1] // 8 * channels
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        layout = _layout(os.pread(file, HEADER, 0))
        if layout is None or (layout.tag, layout.bits) != FORMATS[codec] or layout[1:3] != (channels, sample_rate):
            return None
        if stop * frame_bytes > layout.size:
            return None
        data = os.pread(file, (stop - start) * frame_bytes, layout.first + start * frame_bytes)
    except OSError:
        return None
    finally:
        os.close(file)
    return _floats(data, codec, channels) if len(data) == (stop - start) * frame_bytes else None


def short_pcm(path: str, frames: int) -> tuple[str, int, Frames] | None:
    """Codec, Hz and all the audio, (T, C) float32, of a file of at most `frames` frames; None where it is longer or not so simple."""
    if not hasattr(os, "pread"):
        return None
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        header = os.pread(file, HEADER, 0)
        layout = _layout(header)
        codec = CODECS.get((layout.tag, layout.bits)) if layout else None
        if layout is None or codec is None or EXTENSIBLE_CHUNK in header[: layout.first]:
            return None
        frame_bytes = layout.bits // 8 * layout.channels
        if not 0 < layout.size <= frames * frame_bytes or layout.size % frame_bytes:
            return None
        data = os.pread(file, layout.size, layout.first)
    except OSError:
        return None
    finally:
        os.close(file)
    return (codec, layout.sample_rate, _floats(data, codec, layout.channels)) if len(data) == layout.size else None


def _layout(header: bytes) -> Layout | None:
    """What the chunks before the audio say (RIFF: "Multimedia Programming Interface and Data Specifications 1.0", 1991)."""
    if header[:4] != b"RIFF" or header[8:12] != b"WAVE":
        return None
    position, form = 12, None
    while position + 8 <= len(header):
        name, size = header[position : position + 4], int.from_bytes(header[position + 4 : position + 8], "little")
        body = position + 8
        if name == b"data":
            return None if form is None else Layout(*form, body, size)
        if name == b"fmt " and size >= 16:
            form = _form(header[body : body + size])
        position = body + size + size % 2
    return None


def _form(chunk: bytes) -> tuple[int, int, int, int] | None:
    """Tag, channels, rate and bits; None where samples do not fill their bytes."""
    if len(chunk) < 16:
        return None
    tag, channels, rate, width, bits = (
        int.from_bytes(chunk[start:stop], "little") for start, stop in ((0, 2), (2, 4), (4, 8), (12, 14), (14, 16))
    )
    if tag == EXTENSIBLE and len(chunk) >= 26:
        tag = int.from_bytes(chunk[24:26], "little")
    return (tag, channels, rate, bits) if width * 8 == bits * channels else None


def _floats(data: bytes, codec: str, channels: int) -> Frames:
    """(T, C) samples in [-1, 1), one channel after another in memory; integers by a power of two, which rounds as libsndfile does."""
    import numpy as np

    if codec == "PCM_24":
        samples = np.zeros((len(data) // 3, 4), np.uint8)
        samples[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = samples.view("<i4")[:, 0]
    else:
        values = np.frombuffer(data, {"PCM_16": "<i2", "PCM_32": "<i4", "FLOAT": "<f4"}[codec])
    by_channel = values.reshape(-1, channels).T
    floats = np.empty(by_channel.shape, np.float32)
    np.multiply(by_channel, np.float32(SCALES[codec]), out=floats, casting="same_kind")
    return floats.T
