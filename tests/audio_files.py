"""Small audio files of every format, made for a test: good ones, and every kind of bad one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

FORMATS = {
    "wav": ("x.wav", {"subtype": "PCM_16"}),
    "wav24": ("x.wav", {"subtype": "PCM_24"}),
    "float": ("x.wav", {"subtype": "FLOAT"}),
    "flac": ("x.flac", {}),
    "aiff": ("x.aiff", {}),
    "caf": ("x.caf", {}),
    "ogg": ("x.ogg", {"subtype": "VORBIS"}),
    "opus": ("x.opus", {"format": "OGG", "subtype": "OPUS"}),
    "mp3": ("x.mp3", {}),
    "mp3-vbr": ("x.mp3", {"bitrate_mode": "VARIABLE", "compression_level": 0.9}),
    "mp3-untagged": ("x.mp3", {"bitrate_mode": "CONSTANT", "compression_level": 0.9}),
}


def signal(seconds: float, rate: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """(T, C) float32: a tone and noise that swells, so that no two places are alike."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal((len(t), channels)) * np.abs(np.sin(5 * t))[:, None]
    return (0.3 * np.sin(2 * np.pi * (300 + 7 * seed) * t)[:, None] + 0.1 * noise).astype(np.float32)


def write(path: Path, frames: np.ndarray, rate: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", rate, frames.shape[1], **options) as file:
        for start in range(0, len(frames), 65536):
            file.write(frames[start : start + 65536])
    return path


def make(folder: Path, kind: str, seconds: float = 1.0, rate: int = 44100, channels: int = 2, seed: int = 0) -> Path:
    """A good file of one of `FORMATS`."""
    name, options = FORMATS[kind]
    return write(folder / name, signal(seconds, rate, channels, seed), rate, **options)


def _wav(folder: Path) -> bytes:
    return make(folder, "wav").read_bytes()


def _cut(kind: str) -> Callable[[Path], bytes]:
    def content(folder: Path) -> bytes:
        whole = make(folder, kind, rate=48000).read_bytes()
        return whole[: len(whole) * 6 // 10]

    return content


def _patched(offset: int, replacement: bytes) -> Callable[[Path], bytes]:
    """A WAV with other bytes in its header."""

    def content(folder: Path) -> bytes:
        whole = bytearray(_wav(folder))
        whole[offset : offset + len(replacement)] = replacement
        return bytes(whole)

    return content


def _frames(frames: np.ndarray, rate: int = 44100, **options: object) -> Callable[[Path], bytes]:
    def content(folder: Path) -> bytes:
        return write(folder / "x.wav", frames, rate, **options).read_bytes()

    return content


def _broken_in_the_middle(folder: Path) -> bytes:
    frames = signal(0.5, 44100)
    frames[7000] = np.nan
    return _frames(frames, subtype="FLOAT")(folder)


BAD = {  # name: (content, a word of the cause)
    "empty.wav": (lambda folder: b"", "0 bytes"),
    "cut.wav": (_cut("wav"), "cut"),
    "cut.aiff": (_cut("aiff"), "cut"),
    "cut.flac": (_cut("flac"), "cut or damaged"),
    "cut.mp3": (_cut("mp3"), "cut or damaged"),
    "cut.ogg": (_cut("ogg"), "cut"),
    "cut.opus": (_cut("opus"), "cut"),
    "text.wav": (lambda folder: b"this is a text\n" * 99, "not audio"),
    "random.mp3": (lambda folder: np.random.default_rng(0).bytes(9999), "not audio"),
    "header_only.flac": (lambda folder: make(folder, "flac").read_bytes()[:30], "not audio"),
    "flac_inside.wav": (lambda folder: make(folder, "flac").read_bytes(), "wrong extension: it holds FLAC"),
    "no_channels.wav": (_patched(22, b"\0\0"), "Channel count is zero"),
    "no_rate.wav": (_patched(24, b"\0\0\0\0"), "not audio"),
    "absurd_rate.wav": (_patched(24, b"\xff\xff\xff\x7f"), "2147483647 Hz"),
    "ten_hours.wav": (_patched(40, (2_000_000_000).to_bytes(4, "little")), "promises"),
    "no_frames.wav": (_frames(np.zeros((0, 2), np.float32)), "0 frames"),
    "one_sample.wav": (_frames(np.full((1, 2), 0.5, np.float32)), "too short: 1 samples"),
    "nine_channels.wav": (_frames(signal(0.1, 44100, 9)), "9 channels"),
    "nan.wav": (_broken_in_the_middle, "NaN or infinite samples, the first at 0.16 s"),
    "silent.wav": (_frames(np.zeros((9000, 2), np.float32)), "silent"),
    "long_silence.flac": (lambda folder: write(folder / "x.flac", np.zeros((99000, 1)), 44100).read_bytes(), "silent"),
    "aac.m4a": (lambda folder: b"\0\0\0\x20ftypM4A " + bytes(99), ".m4a"),
    "mp4_inside.wav": (lambda folder: b"\0\0\0\x20ftypM4A " + bytes(99), "AAC"),
}


def make_bad(folder: Path, scratch: Path, name: str) -> Path:
    """One of `BAD`, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(BAD[name][0](scratch))
    return path
