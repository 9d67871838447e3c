"""Going on from audio with a model that inpaints: its beginning is given, the rest is made."""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor

from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion

from .generation import generate_diffusion_cond_inpaint
from .given_audio import GivenAudio


class Continuation(TypedDict):
    """Arguments of `generate_diffusion_cond_inpaint` that make a continuation of it."""

    inpaint_audio: GivenAudio
    regenerate_s: list[tuple[float, float]]
    sample_size: int


def continuation(audio: GivenAudio, sample_rate: int, *, seconds: float, keep_s: float | None = None) -> Continuation:
    """The first `keep_s` seconds of audio, and what is to be made behind them.

    Args:
        audio: (sample rate in Hz, audio (C, T) or (B, C, T)).
        sample_rate: the model's, in Hz.
        seconds: of the whole.
        keep_s: seconds that are kept; default all of the audio. The latent frame that they end in is made anew.

    Raises:
        ValueError: nothing is kept, nothing is left to make, or more is to be kept than there is.
    """
    held = audio[1].shape[-1] / audio[0]
    kept = held if keep_s is None else keep_s
    if not 0 < kept <= held:
        raise ValueError(f"keep_s must be above 0 and at most the {held:g} s that the audio holds, got {kept:g}")
    if kept >= seconds:
        raise ValueError(f"{kept:g} s are kept, and the whole is to be {seconds:g} s: nothing is left to make; raise seconds or set keep_s")
    return {"inpaint_audio": audio, "regenerate_s": [(kept, seconds)], "sample_size": round(seconds * sample_rate)}


def continue_audio(
    model: ConditionedDiffusion, audio: GivenAudio, *, seconds: float, keep_s: float | None = None, **options: Any
) -> Tensor:
    """Audio (B, C, seconds x sample rate) that begins as `audio` does; see `continuation` and `generate_diffusion_cond_inpaint`.

    Args:
        options: the other arguments of `generate_diffusion_cond_inpaint`, such as `conditioning`, `steps` and `seed`.

    Raises:
        ConfigError, ValueError: as both.
    """
    return generate_diffusion_cond_inpaint(model, **continuation(audio, model.sample_rate, seconds=seconds, keep_s=keep_s), **options)
