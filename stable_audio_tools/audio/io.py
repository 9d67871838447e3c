"""Reading and writing audio files: what a file holds, any part of it at any rate and channel count, and safe saving.

Read: WAV, FLAC, AIFF, Ogg Vorbis, Opus and MP3, through libsndfile; AAC with the extra `codec`. A part is found by seeking,
and is equal bit by bit to that part of the whole, also after resampling. Written: WAV, FLAC, Ogg Vorbis and MP3. Every failure
is a ConfigError that names the file and the cause.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.audio import codec
from stable_audio_tools.audio.containers import missing_bytes, mp3_has_length, ogg_end
from stable_audio_tools.audio.pcm import read_pcm, short_pcm
from stable_audio_tools.audio.resample import resample_span, resampled_length
from stable_audio_tools.configs.errors import ConfigError

if TYPE_CHECKING:
    from stable_audio_tools.audio.resample import Frames

log = logging.getLogger(__name__)

CONTAINERS = {  # libsndfile's names for what may stand behind an extension
    ".wav": ("WAV", "WAVEX", "RF64"),
    ".flac": ("FLAC",),
    ".ogg": ("OGG",),
    ".oga": ("OGG", "FLAC"),
    ".opus": ("OGG",),
    ".mp3": ("MP3",),
    ".aif": ("AIFF",),
    ".aiff": ("AIFF",),
    ".aifc": ("AIFF",),
    ".caf": ("CAF",),
    ".w64": ("W64",),
    **dict.fromkeys(codec.EXTENSIONS, (codec.CONTAINER,)),
}
CANNOT_READ = (".wma", ".webm", ".mka", ".ape", ".wv")
CHANGED = "the file has changed since it was first looked at"
EMPTY_WORDS = ("Unspecified", "Internal", "System error", "File does not exist", "File contains data in an unimplemented")
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz, chosen: what is outside is a broken header
MAX_CHANNELS = 8  # 7.1; beyond it nobody can say what the first two channels are
READ_BLOCK = 1 << 18  # frames
WRITE_BLOCK = 65536  # frames; libsndfile crashes when it gets minutes of audio to encode as Ogg in one call
MPEG_FRAME = 1152  # samples of an MPEG-1 layer III frame
MPEG_LEAD = 12  # frames before the part: a frame may use bits of up to 8 earlier ones (32 kbit/s) and overlaps with one more
OPUS_LEAD = 16384  # RFC 7845 asks for 80 ms until the ear is satisfied; bits agree after 7680 frames at the latest
VORBIS_BLOCK = 8192  # the longest block of Vorbis I
WRITTEN: dict[str, tuple[str, dict[int, str]]] = {  # extension: libsndfile's container, and its codec by bit depth
    ".wav": ("WAV", {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}),
    ".flac": ("FLAC", {16: "PCM_16", 24: "PCM_24"}),
    ".ogg": ("OGG", {16: "VORBIS"}),  # lossy codecs have no bit depth: 16 stands for that
    ".mp3": ("MP3", {16: "MPEG_LAYER_III"}),
}
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, of MPEG-1, 2 and 2.5
BEST = {"MP3": {"bitrate_mode": "VARIABLE", "compression_level": 0.0}}  # about 256 kbit/s of stereo: nobody hears it


class AudioInfo(NamedTuple):
    """What the header says. container and codec are libsndfile's names, such as "WAV" and "PCM_16"."""

    frames: int
    sample_rate: int
    channels: int
    container: str
    codec: str

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


class Saved(NamedTuple):
    """What had to be changed to write a file: samples beyond full scale (limited), and NaN or infinite ones (silenced)."""

    clipped: int
    not_finite: int


# reading


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header.

    Raises:
        ConfigError: there is no such file, it is no audio, it ends before its header says, or the header is absurd.
    """
    name = os.fspath(path)
    if codec.wanted(name):
        return _probed_by_codec(name)
    with _opened(name) as file:
        return _probed(name, file)


def probe_short(path: str, frames: int) -> tuple[AudioInfo, Tensor | None]:
    """As `probe`, with all the audio of a file of at most `frames` frames: (C, T) float32; one opening of the file instead of two.

    Raises:
        ConfigError: as `probe`, or the audio cannot be decoded.
    """
    if codec.wanted(path):
        return _probed_by_codec(path), None
    if plain := short_pcm(path, frames):
        name, rate, audio = plain
        info = AudioInfo(len(audio), rate, audio.shape[1], "WAV", name)
        if not _absurd(info):
            return info, torch.from_numpy(audio.T)
    with _opened(path) as file:
        info = _probed(path, file)
        if info.frames > frames or file.tell():  # its frames were counted, and seeking back in an MP3 is not exact
            return info, None
        return info, torch.from_numpy(_read(path, file, info, 0, info.frames).T)


def _probed_by_codec(name: str) -> AudioInfo:
    if not os.access(name, os.R_OK) or not os.path.isfile(name) or not os.path.getsize(name):
        raise ConfigError(_cause(name, OSError()), shown(name))
    frames, sample_rate, channels, kind = codec.described(name, shown(name))
    info = AudioInfo(frames, sample_rate, channels, codec.CONTAINER, kind)
    if cause := _absurd(info):
        raise ConfigError(cause, shown(name))
    return info


def load_audio(
    path: str | os.PathLike[str], *, sample_rate: int | None = None, channels: int | None = None, start: int = 0, frames: int | None = None
) -> tuple[Tensor, int]:
    """Read a file, or a part of it without decoding the rest.

    Args:
        sample_rate: Hz to resample to; left out: the file's own.
        channels: left out: the file's own. See `to_channels`.
        start, frames: the part, in frames at the returned rate; left out: all of it.

    Returns:
        (C, T) float32 and the sample rate in Hz. T is `frames`, or less where the file ends before.

    Raises:
        ConfigError: as `probe`, or the audio cannot be decoded or turned into `channels`.
        ValueError: `start` or `frames` is negative.
    """
    name = os.fspath(path)
    info = probe(name)
    rate = sample_rate or info.sample_rate
    length = resampled_length(info.frames, info.sample_rate, rate)
    stop = length if frames is None else min(start + frames, length)
    if start < 0 or stop < min(start, length):
        raise ValueError(f"the part [{start}, {stop}) of {shown(name)} is none; start and frames must not be negative")
    audio = read_part(name, info, rate, min(start, stop), stop)
    try:
        return to_channels(audio, channels or info.channels).contiguous(), rate
    except ValueError as error:
        raise ConfigError(str(error), shown(name)) from None


def read_part(path: str, info: AudioInfo, sample_rate: int, start: int, stop: int) -> Tensor:
    """(C, stop - start) float32: frames [start, stop) at `sample_rate`, with the file's own channels.

    Args:
        info: what `probe` said about the file.

    Raises:
        ConfigError: the file cannot be decoded, or is not any more what `info` says.
    """
    import numpy as np

    if start >= stop:
        return torch.zeros(info.channels, 0)
    if sample_rate == info.sample_rate:
        part = _decode(path, info, start, stop)
    else:
        part = resample_span(lambda a, b: _decode(path, info, a, b), info.frames, info.sample_rate, sample_rate, start, stop)
    return torch.from_numpy(np.ascontiguousarray(part.T))  # torch takes ten times as long to copy across


def to_channels(audio: Tensor, channels: int) -> Tensor:
    """(C, T) to (channels, T): the mean to mono, mono repeated, front left and right of more channels to stereo.

    Raises:
        ValueError: any other conversion, which would be a guess.
    """
    present = audio.shape[0]
    if not can_make(channels, present):
        raise ValueError(f"cannot make {channels} channels of {present}; from mono, or to mono or stereo, is possible")
    if channels == present:
        return audio
    if channels == 1:
        return audio.mean(0, keepdim=True)
    return audio.repeat(channels, 1) if present == 1 else audio[:2]


def can_make(channels: int, present: int) -> bool:
    """Whether `to_channels` can turn `present` channels into `channels`."""
    return channels == present or present == 1 or channels in (1, 2)


def peak_level(audio: Tensor) -> float:
    """The largest magnitude of audio on the CPU; NaN where any sample is NaN."""
    samples = audio.numpy()  # torch would wake its threads for each crop, which costs more than the search
    return max(-float(samples.min()), float(samples.max()))


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that any terminal and log can take: undecodable bytes and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _decode(path: str, info: AudioInfo, start: int, stop: int) -> Frames:
    """Frames [start, stop) as (T, C) float32, the same bits as in a decode of the whole."""
    if info.container in ("WAV", "WAVEX"):
        plain = read_pcm(path, info.codec, info.sample_rate, info.channels, start, stop)
        if plain is not None:
            return plain
    if info.container == codec.CONTAINER:
        return _decoded_by_codec(path, info, start, stop)
    with _opened(path) as file:
        if _info(file)[1:] != info[1:]:
            raise ConfigError(CHANGED, shown(path))
        begin = _seek_target(path, info, start)
        file.seek(begin)
        return _read(path, file, info, begin, stop)[start - begin :]


def _read(path: str, file: Any, info: AudioInfo, begin: int, stop: int) -> Frames:
    """Frames [begin, stop) of a file that stands at `begin`."""
    frames = file.read(stop - begin, dtype="float32", always_2d=True)
    if len(frames) < stop - begin:
        ends = (begin + len(frames)) / info.sample_rate
        raise ConfigError(f"the audio ends at {ends:.2f} s of {info.seconds:.2f} s: the file is cut or damaged", shown(path))
    return frames


def _decoded_by_codec(path: str, info: AudioInfo, start: int, stop: int) -> Frames:
    frames, sample_rate = codec.decoded(path, shown(path))
    if (frames.shape, sample_rate) != ((info.frames, info.channels), info.sample_rate):
        raise ConfigError(CHANGED, shown(path))
    return frames[start:stop]


def _seek_target(path: str, info: AudioInfo, start: int) -> int:
    """Where to start decoding, so that frame `start` comes out as in a decode of the whole.

    Uncompressed and FLAC audio starts anywhere. The others need a lead: MP3 and Opus decoders carry state, and libsndfile
    lands beside the target when it lies on the last page of a Vorbis file. MPEG-2 layer III (below 32 kHz) carries so
    much that only the start of the file gives the same bits.
    """
    if not start or not (info.codec.startswith("MPEG") or info.codec in ("OPUS", "VORBIS")):
        return start
    if info.codec == "OPUS":
        return max(0, start - OPUS_LEAD)
    if info.codec == "VORBIS":
        return min(start, max(0, ogg_end(path).last_page_start - 2 * VORBIS_BLOCK))
    if info.sample_rate < 32_000:
        return 0
    return max(0, start - MPEG_LEAD * MPEG_FRAME) // (2 * MPEG_FRAME) * 2 * MPEG_FRAME  # even frames: the synthesis window's phase


def _probed(path: str, file: Any) -> AudioInfo:
    info = _info(file)
    cause = _absurd(info) or _cut(path, info)
    if cause:
        raise ConfigError(cause, shown(path))
    guessed = info.codec.startswith("MPEG") and not mp3_has_length(path)
    return info._replace(frames=_counted(file)) if guessed else info


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A fresh `soundfile.SoundFile`: seeking twice in one handle is not exact for Ogg and MP3."""
    import soundfile

    try:
        file = soundfile.SoundFile(_native(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(_cause(path, error), shown(path)) from None
    try:
        with file:
            yield file
    except soundfile.SoundFileError:
        raise ConfigError("the audio cannot be decoded: the file is cut or damaged", shown(path)) from None
    except OSError as error:
        raise ConfigError(_cause(path, error), shown(path)) from None


def _native(path: str | Path) -> str | bytes:
    """A path as libsndfile takes it: bytes, since names on POSIX may be no text, but text on Windows."""
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


def _info(file: Any) -> AudioInfo:
    return AudioInfo(file.frames, file.samplerate, file.channels, file.format, file.subtype)


def _counted(file: Any) -> int:
    """Frames that come out of a decode."""
    total = 0
    while block := len(file.read(READ_BLOCK, dtype="float32")):
        total += block
    return total


def _absurd(info: AudioInfo) -> str:
    if not 0 < info.channels <= MAX_CHANNELS:
        return f"{info.channels} channels; 1 to {MAX_CHANNELS} can be used"
    if not LOWEST_RATE <= info.sample_rate <= HIGHEST_RATE:
        return f"a sample rate of {info.sample_rate} Hz; the header is damaged"
    if info.frames > 1 << 48:
        return "the header does not say how long the audio is (it was written to a pipe); encode it again into a file"
    return "" if info.frames else "no audio: the header says 0 frames"


def _cut(path: str, info: AudioInfo) -> str:
    if info.container == "OGG":
        return "the file ends inside a page: it is cut" if ogg_end(path).cut else ""
    missing = missing_bytes(path)
    return f"the header promises {missing} bytes more than the file has: it is cut or its header wrong" if missing else ""


def _cause(path: str, error: Exception) -> str:
    """Why a file cannot be opened or read, in words; libsndfile's own are often empty or "System error"."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        return "no such file"
    except IsADirectoryError:
        return "is a folder, not an audio file"
    except PermissionError:
        return "no permission to read the file"
    except OSError as fault:
        return f"cannot read the file: {fault.strerror or fault}"
    if not start:
        return "the file is empty (0 bytes)"
    if start[4:8] == b"ftyp":
        return "MP4 or AAC, which cannot be read; convert it, for instance to FLAC"
    said = getattr(error, "error_string", str(error)).strip().rstrip(".")
    return f"not audio that can be read, or damaged{f' ({said})' if said and not said.startswith(EMPTY_WORDS) else ''}"


# writing


def save_audio(path: str | os.PathLike[str], audio: Tensor, sample_rate: int, *, bit_depth: int = 16) -> Saved:
    """Write `audio` (C, T), full scale -1 to 1, as WAV, FLAC, OGG or MP3 by the name's extension; the folder must exist.

    Samples beyond full scale are limited, never wrapped, and NaN or infinite ones become silence; both are counted and
    logged. The file appears under its name only when it is whole. Integers of `bit_depth` 16 or 24 survive unchanged; 32, of WAV
    alone, are floats, which need no limit.

    Raises:
        ConfigError: the file cannot be written, or its format has no such sample rate or number of channels.
        ValueError: not (C, T), no frames, an unknown extension, or a bit depth that the format does not have.
    """
    import soundfile

    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in WRITTEN:
        raise ValueError(f"cannot write {target.name!r}: the name must end in {', '.join(WRITTEN)}")
    form, codecs = WRITTEN[suffix]
    if audio.ndim != 2 or not audio.numel() or bit_depth not in codecs:
        bits = " or ".join(map(str, codecs))
        raise ValueError(f"cannot write audio of shape {tuple(audio.shape)} with {bit_depth} bits; expected (C, T) and {bits} bits")
    if reason := unwritable(suffix, sample_rate, audio.shape[0]):
        raise ConfigError(reason, shown(target))
    subtype = codecs[bit_depth]
    audio, saved = _writable_samples(audio, limited=subtype != "FLOAT")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with soundfile.SoundFile(_native(part), "w", sample_rate, audio.shape[0], subtype, format=form, **BEST.get(form, {})) as file:
            for block in audio.T.split(WRITE_BLOCK):
                file.write(_encoded(block, subtype).numpy())
        os.replace(part, target)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"cannot write the file: {_write_cause(part, error)}", shown(target)) from None
    finally:
        part.unlink(missing_ok=True)
    if saved.not_finite:
        log.warning("%s: %d samples that were not finite were silenced", shown(target), saved.not_finite)
    if saved.clipped:
        log.info("%s: %d samples beyond full scale were limited", shown(target), saved.clipped)
    return saved


def unwritable(suffix: str, sample_rate: int, channels: int) -> str:
    """Why a file of this extension cannot hold such audio; "": it can."""
    if suffix == ".mp3" and channels > 2:
        return f"MP3 has at most 2 channels, and the audio {channels}; choose .wav or .flac"
    if suffix == ".mp3" and sample_rate not in MP3_RATES:
        return f"MP3 has no sample rate of {sample_rate} Hz; choose .wav or .flac"
    if suffix == ".flac" and channels > MAX_CHANNELS:
        return f"FLAC has at most {MAX_CHANNELS} channels, and the audio {channels}; choose .wav"
    return ""


def _writable_samples(audio: Tensor, *, limited: bool) -> tuple[Tensor, Saved]:
    audio = audio.detach().float().cpu()
    finite = audio.isfinite()
    not_finite = int((~finite).sum())
    audio = audio.where(finite, 0.0) if not_finite else audio
    return (audio.clamp(-1, 1), Saved(int((audio.abs() > 1).sum()), not_finite)) if limited else (audio, Saved(0, not_finite))


def _encoded(block: Tensor, subtype: str) -> Tensor:
    """(T, C) floats as what libsndfile writes without scaling: int16, 24 bits at the top of int32, or floats."""
    block = block.contiguous()
    if subtype == "PCM_16":
        return (block * 2**15).round().clamp(max=2**15 - 1).to(torch.int16)
    if subtype == "PCM_24":
        return (block.double() * 2**23).round().clamp(max=2**23 - 1).to(torch.int32) << 8
    return block


def _write_cause(path: Path, error: Exception) -> str:
    """What the system says; libsndfile keeps it to itself."""
    try:
        with open(path, "ab"):
            return str(error)
    except OSError as fault:
        return fault.strerror or str(fault)
