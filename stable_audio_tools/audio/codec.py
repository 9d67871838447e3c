"""AAC in MPEG-4 files, through torchcodec and FFmpeg, which the extra `codec` and the system bring.

A file is decoded whole for each part: FFmpeg seeks in AAC to frames and not to samples, and the first frames after a seek
differ from those of the whole.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stable_audio_tools.configs.errors import ConfigError

if TYPE_CHECKING:
    from stable_audio_tools.audio.resample import Frames

CONTAINER = "FFMPEG"  # the container of a file that is read here, beside libsndfile's names
EXTENSIONS = (".m4a", ".aac", ".mp4")


def wanted(path: str) -> bool:
    """Whether a file of this name is read here."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def described(path: str, name: str) -> tuple[int, int, int, str]:
    """Frames, sample rate, channels and codec; frames are counted, since headers count the encoder's delay.

    Args:
        name: the path as messages show it.

    Raises:
        ConfigError: torchcodec or FFmpeg is missing, or the file is no audio.
    """
    decoder = _decoder(path, name)
    samples = _samples(decoder, name)
    return samples.data.shape[1], samples.sample_rate, samples.data.shape[0], str(decoder.metadata.codec or "unknown")


def decoded(path: str, name: str) -> tuple[Frames, int]:
    """All of a file as (T, C) float32, and its sample rate; errors are those of `described`."""
    samples = _samples(_decoder(path, name), name)
    return samples.data.T.numpy(), samples.sample_rate


def _samples(decoder: Any, name: str) -> Any:
    try:
        return decoder.get_all_samples()
    except (RuntimeError, ValueError, OSError):
        raise ConfigError("the audio cannot be decoded: the file is cut or damaged", name) from None


def _decoder(path: str, name: str) -> Any:
    extension = os.path.splitext(path)[1].lower()
    try:
        from torchcodec.decoders import AudioDecoder
    except ImportError:
        cause = (
            f'{extension} cannot be read without torchcodec: pip install "stable-audio-tools[codec]", or convert it, for instance to FLAC'
        )
        raise ConfigError(cause, name) from None
    except (RuntimeError, OSError):  # what it raises where no FFmpeg can be loaded
        cause = f"{extension} cannot be read without FFmpeg, which torchcodec does not find: install it, or convert the file to FLAC"
        raise ConfigError(cause, name) from None
    try:
        return AudioDecoder(path)
    except (RuntimeError, ValueError, OSError):
        raise ConfigError(f"not {extension} audio that can be read, or damaged", name) from None
