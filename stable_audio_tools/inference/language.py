"""Audio from a language model: from nothing, or as a continuation of audio, of a length in seconds.

B batch, C channels, T audio samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from stable_audio_tools.models.lm import AudioLanguageModel, Progress
from stable_audio_tools.models.token_sampling import Sampling

from .decoding import decode_tokens
from .given_audio import GivenAudio, conformed
from .isolation import chosen_seed, isolated, item_streams, weight_of

DEFAULT_FRAMES = 256  # upstream's


def generate_lm(
    model: AudioLanguageModel,
    *,
    conditioning: Sequence[Mapping[str, Any]] | None = None,
    negative_conditioning: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
    seconds: float | None = None,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    init_audio: GivenAudio | None = None,
    seed: int | Sequence[int] = -1,
    chunked_decode: bool | None = None,
    callback: Progress | None = None,
) -> Tensor:
    """Generate a batch of audio.

    Args:
        conditioning: metadata of each item, or one entry for all; left out for a model without conditions.
        negative_conditioning: what guidance moves away from; default: nothing said.
        batch_size: number of items; default as many as conditions or clips to continue, else 1.
        seconds: of each item, what `init_audio` holds included; default 256 frames of tokens.
        cfg_scale: strength of guidance; 1: none.
        temperature: of the draws; 0: always the most likely token.
        top_k: draw from that many of the most likely tokens; 0: from all; default 250, or all with `top_p`.
        top_p: draw from the most likely tokens that together have this probability.
        init_audio: (sample rate in Hz, audio (T,), (C, T) or (B, C, T)) to continue: the tokens of its whole frames are kept.
        seed: of the draws, -1 for a fresh one, which is logged. Item i of seed s is the same in every batch; a sequence gives each item
            its own seed, as if it were made alone.
        chunked_decode: see `decoding.decode_latents`.
        callback: called with the steps done and their number.

    Returns:
        (B, C, seconds x sample rate) float32.

    Raises:
        ConfigError: metadata that do not suffice.
        ValueError: the arguments do not fit each other or the model.
    """
    sampling = _sampling(temperature, top_k, top_p)
    ratio = model.min_input_length
    samples = DEFAULT_FRAMES * ratio if seconds is None else round(seconds * model.sample_rate)
    if samples < 1:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    batch = _batch_size(batch_size, conditioning, init_audio)
    given = None if init_audio is None else _beginning(model, init_audio, samples, batch)
    seeds = chosen_seed(seed) if isinstance(seed, int) else list(seed)
    streams = item_streams(seeds, batch)
    with isolated(model, streams[0]):
        tokens = model.generate(
            math.ceil(samples / ratio),
            batch,
            None if given is None else model.pretransform.tokenize(given),
            conditioning,
            negative_conditioning=negative_conditioning,
            cfg_scale=cfg_scale,
            temp=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=seeds,
            callback=callback,
        )
        audio = decode_tokens(model.pretransform, tokens, model.sample_rate, streams, chunked=chunked_decode)
    return audio[..., :samples].float()


def _sampling(temperature: float, top_k: int | None, top_p: float | None) -> Sampling:
    if top_k is not None and top_p:
        raise ValueError("give either top_k or top_p, not both")
    default = 0 if top_p else Sampling().top_k
    sampling = Sampling(temperature, default if top_k is None else top_k, top_p or 0.0)
    sampling.check()
    return sampling


def _batch_size(asked: int | None, conditioning: Sequence[Mapping[str, Any]] | None, init_audio: GivenAudio | None) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"batch_size must be at least 1, got {asked}")
    if asked is not None:
        return asked
    clips = len(init_audio[1]) if init_audio is not None and init_audio[1].ndim == 3 else 1
    return max(len(conditioning or ()), clips, 1)


def _beginning(model: AudioLanguageModel, init_audio: GivenAudio, samples: int, batch: int) -> Tensor:
    """(B or 1, C, whole frames) of what is to be continued, on the device and in the precision of the codec."""
    codec, ratio = model.pretransform, model.min_input_length
    clips = conformed(init_audio, model.sample_rate, codec.io_channels, "init_audio", batch_size=batch)
    whole = clips.shape[-1] // ratio * ratio
    if not whole:
        raise ValueError(f"init_audio has {clips.shape[-1]} samples at {model.sample_rate} Hz, a frame of tokens takes {ratio}")
    if whole >= samples:
        held, asked = whole / model.sample_rate, samples / model.sample_rate
        raise ValueError(f"init_audio holds {held:g} s, and the whole is to be {asked:g} s: nothing is left to make; raise seconds")
    return clips[..., :whole].to(weight_of(codec))
