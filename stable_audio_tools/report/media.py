"""Sounds and pictures small enough to live inside the page, and the choice of the demos that do.

Encoding is remembered for this process by path, size and time of change, since a report is rebuilt hundreds of times.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.report.demos import Clip, DemoStep

EMBED_BUDGET = 20 * 2**20
"""Most characters of base64 media in the page of a run that has ended. Chosen: opens on a phone, passes as an e-mail attachment."""
RUNNING_BUDGET = 4 * 2**20
"""The same while the run goes on: the page is rewritten often, and the files lie beside it."""

WAV_BYTES = 96 * 2**10  # a sound file up to this size is embedded as it is
FLAC_BYTES = 512 * 2**10  # what is larger as FLAC becomes MP3: a minute of music takes 1 MB instead of 7
PICTURE_BYTES = 8 * 2**10  # a picture up to this size is embedded as it is
WEBP_QUALITY = 75  # chosen: a spectrogram of 640 x 288 takes 5 to 20 kB, as PNG 25 to 170 kB
WEBP_METHOD = 2  # of 0 to 6; half the time of the default, 4, for 3 % more bytes
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
SOUND_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
PICTURE_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Media:
    """A file as the page embeds it.

    key: names the content; equal files are embedded once.
    lossy: a sound that is not sample by sample that of the file.
    loudness: of a sound, in LUFS; None where it is silent or cannot be measured.
    """

    key: str
    mime: str
    base64: str
    lossy: bool = False
    loudness: float | None = None


class MediaCache:
    """Encodes files at first sight. What a build did not use is dropped from memory, its key and size stay known."""

    def __init__(self) -> None:
        self._sizes: dict[tuple, tuple[str, int] | None] = {}
        self._encoded: dict[tuple, Media] = {}
        self._plots: dict[tuple, tuple[float, ...]] = {}

    def size(self, path: Path) -> tuple[str, int] | None:
        """Content key and number of base64 characters, or None where the file is not a sound or picture (yet)."""
        identity = _identity(path)
        if identity not in self._sizes:
            media = encode(path)
            self._sizes[identity] = (media.key, len(media.base64)) if media else None
            if media:
                self._encoded[identity] = media
        return self._sizes[identity]

    def get(self, path: Path) -> Media | None:
        """The encoded file, or None where it is not a sound or picture (yet)."""
        identity = _identity(path)
        if self.size(path) and identity not in self._encoded and (media := encode(path)):
            self._encoded[identity] = media
        return self._encoded.get(identity)

    def plot_area(self, path: Path) -> tuple[float, ...]:
        """Where the plot lies in a spectrogram: left, top, right, bottom as fractions; the whole picture if it does not say."""
        identity = _identity(path)
        if identity not in self._plots:
            self._plots[identity] = read_plot_area(path)
        return self._plots[identity]

    def keep_only(self, paths: Set[Path]) -> None:
        """Forget the encoded form of all other files."""
        wanted = {_identity(path) for path in paths}
        self._encoded = {identity: media for identity, media in self._encoded.items() if identity in wanted}


def _identity(path: Path) -> tuple:
    try:
        status = path.stat()
    except OSError:
        return (str(path),)
    return (str(path), status.st_size, status.st_mtime_ns)


def encode(path: Path) -> Media | None:
    """The file in the smallest form that a browser opens and that is good to hear or see; None where it is neither sound nor picture."""
    try:
        content = path.read_bytes()
        key = hashlib.sha256(content).hexdigest()[:16]
        return _sound(key, content, path.suffix.lower()) if path.suffix.lower() in SOUND_TYPES else _picture(key, content)
    except (OSError, RuntimeError, ValueError):  # soundfile's and pillow's errors; a file that is being written looks like this
        return None


def _media(key: str, mime: str, packed: bytes, **more: Any) -> Media:
    return Media(key, mime, base64.b64encode(packed).decode("ascii"), **more)


def _sound(key: str, content: bytes, suffix: str) -> Media:
    """The file itself while it is small, else as FLAC, else as MP3."""
    import soundfile

    audio, sample_rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    loudness = _loudness(audio, sample_rate)
    if len(content) <= (WAV_BYTES if suffix == ".wav" else FLAC_BYTES):
        return _media(key, SOUND_TYPES[suffix], content, loudness=loudness)
    packed = io.BytesIO()
    soundfile.write(packed, audio, sample_rate, format="FLAC")
    if packed.getbuffer().nbytes <= FLAC_BYTES or sample_rate not in MP3_RATES or audio.shape[1] > 2:
        return _media(key, "audio/flac", packed.getvalue(), loudness=loudness)
    packed = io.BytesIO()
    soundfile.write(packed, audio, sample_rate, format="MP3")
    return _media(key, "audio/mpeg", packed.getvalue(), lossy=True, loudness=loudness)


def _loudness(audio: Any, sample_rate: int) -> float | None:
    """LUFS of (T, C) samples."""
    import torch

    from stable_audio_tools.audio.loudness import can_measure, loudness_lufs

    if not len(audio) or not can_measure(sample_rate, audio.shape[1]):
        return None
    loudness = loudness_lufs(torch.from_numpy(audio.T.copy()), sample_rate)
    return round(loudness, 2) if math.isfinite(loudness) else None


def _picture(key: str, content: bytes) -> Media:
    """The picture itself while it is small, else as WebP if pillow can write it and it helps."""
    from PIL import Image, features

    with Image.open(io.BytesIO(content), formats=list(PICTURE_TYPES)) as image:
        image.load()
        mime = PICTURE_TYPES[image.format or ""] if image.format in PICTURE_TYPES else "image/png"
        if len(content) > PICTURE_BYTES and features.check("webp"):
            packed = io.BytesIO()
            image.convert("RGB").save(packed, format="WEBP", quality=WEBP_QUALITY, method=WEBP_METHOD)
            if packed.getbuffer().nbytes < len(content):
                return _media(key, "image/webp", packed.getvalue(), lossy=True)
    return _media(key, mime, content)


def read_plot_area(path: Path) -> tuple[float, ...]:
    """What `audio.spectrogram` wrote into the file about where its plot lies."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            edges = tuple(float(edge) for edge in str(image.info.get("plot-area", "")).split())
    except (OSError, ValueError):
        return WHOLE
    left, top, right, bottom = edges if len(edges) == 4 else WHOLE
    return (left, top, right, bottom) if 0 <= left < right <= 1 and 0 <= top < bottom <= 1 else WHOLE


def choose_embedded(steps: list[DemoStep], cache: MediaCache, budget: int) -> set[Path]:
    """The files to embed: those of the last step, of the first, then of evenly spaced steps, ever denser while they fit.

    Of a last or first step that does not fit, the leading demos are taken. The spacing is a power of two counted from the
    first step: a growing run only ever drops steps, so no old one has to be encoded again.
    """
    chosen: set[Path] = set()
    contents: set[str] = set()
    for number, indices in enumerate(_levels(len(steps))):
        clips = [clip for index in indices for clip in steps[index].clips]
        for part in [[clip] for clip in clips] if number < 2 else [clips]:
            found = _contents(part, contents, cache, budget)
            if found is None:
                return chosen
            chosen |= found[0]
            contents |= found[1].keys()
            budget -= sum(found[1].values())
    return chosen


def _contents(clips: list[Clip], known: set[str], cache: MediaCache, room: int) -> tuple[set[Path], dict[str, int]] | None:
    """The files of `clips` and the sizes of their contents that are not among the known; None as soon as they exceed the room."""
    files: set[Path] = set()
    new: dict[str, int] = {}
    for path in (path for clip in clips for path in (clip.audio, clip.image, clip.latents) if path):
        size = cache.size(path)
        if size is None:
            continue
        files.add(path)
        if size[0] not in known:
            new[size[0]] = size[1]
        if sum(new.values()) > room:
            return None
    return files, new


def _levels(count: int) -> list[list[int]]:
    """0 .. count - 1 in order of importance: [last], [first], then the steps that each halving of the spacing adds."""
    levels = [[count - 1], [0]] if count > 1 else [[0]] * count
    stride = 1 << max(count - 1, 1).bit_length()
    seen = {0, count - 1}
    while stride > 1:
        stride //= 2
        levels.append([index for index in range(0, count, stride) if index not in seen])
        seen.update(levels[-1])
    return [level for level in levels if level]
