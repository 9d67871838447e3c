"""Audio through an autoencoder or a diffusion autoencoder and back, of any rate, channel count and length.

A variational bottleneck gives its mean, so that a reconstruction is the same every time. What else is random (a sampler's noise, noise
beside the latents) comes from each item's own stream. Long audio is encoded and decoded in chunks, see `long_audio`.

B batch, C channels, T audio samples or latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.samplers import Step, noise_like
from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.chunking import Chunks
from stable_audio_tools.models.diffusion_autoencoder import DECODING_STEPS, DiffusionAutoencoder
from stable_audio_tools.models.lm import Progress

from .given_audio import GivenAudio, conformed, cut_or_padded
from .isolation import Stream, each_isolated, isolated, item_streams, weight_of
from .long_audio import chunks_of, mapped, reach


def reconstruct(
    model: AudioAutoencoder,
    audio: GivenAudio,
    *,
    steps: int | None = None,
    seed: int | Sequence[int] = -1,
    num_quantizers: int | None = None,
    latent_noise: float = 0.0,
    chunk_s: float | None = None,
    callback: Progress | None = None,
) -> Tensor:
    """Encode and decode audio.

    Args:
        model: an autoencoder, or a diffusion autoencoder.
        audio: (sample rate in Hz, audio (T,), (C, T) or (B, C, T)); it is resampled and its channels are converted as needed.
        steps: sampler steps of a diffusion autoencoder; default 100.
        seed: of all that is random, -1 for a fresh one, which is logged. A sequence gives each item its own, as if it were alone.
        num_quantizers: use the first so many codebooks alone; default all.
        latent_noise: standard deviation of noise that is added to the latents.
        chunk_s: seconds that each chunk adds; default: audio longer than a minute in chunks of 20 s, other audio in one.
        callback: called with how much is decoded, in chunks or sampler steps, and the whole.

    Returns:
        (B, out_channels, T) float32 on the model's device, at the model's rate and as long as what was given.

    Raises:
        ValueError: the arguments do not fit each other or the model.
    """
    _check_model(model)
    _check_settings(model, steps, num_quantizers, latent_noise)
    clips = conformed(audio, model.sample_rate, model.in_channels, "audio")
    streams = item_streams(seed, len(clips))
    with isolated(model, streams[0]):
        encoded = _encoded(model, clips, chunk_s)
        inner = _decoder_input(model, encoded, streams, num_quantizers, latent_noise)
        decoded = _decoded(model, inner, streams, steps, chunk_s, callback)
    # Strides that do not divide leave out a few samples at the end.
    return cut_or_padded(decoded, clips.shape[-1]).float()


def encode(model: AudioAutoencoder, audio: GivenAudio, *, chunk_s: float | None = None) -> Tensor:
    """Latents (B, latent_dim, frames) float32 of audio, of which silence fills the last frame; arguments as in `reconstruct`."""
    _check_model(model)
    clips = conformed(audio, model.sample_rate, model.in_channels, "audio")
    with isolated(model, (0, 0)):
        encoded = _encoded(model, clips, chunk_s)
        return (encoded if model.bottleneck is None else model.bottleneck.encode(encoded, sample=False)).float()


def decode(
    model: AudioAutoencoder,
    latents: Tensor,
    *,
    steps: int | None = None,
    seed: int = -1,
    chunk_s: float | None = None,
    callback: Progress | None = None,
) -> Tensor:
    """Audio (B, out_channels, samples) float32 of latents (B, latent_dim, frames); arguments as in `reconstruct`."""
    _check_model(model)
    _check_settings(model, steps, None, 0.0)
    if latents.ndim != 3 or latents.shape[1] != model.latent_dim or not latents.shape[2]:
        raise ValueError(f"latents have shape {tuple(latents.shape)}, expected (batch, {model.latent_dim}, frames)")
    streams = item_streams(seed, len(latents))
    with isolated(model, streams[0]):
        inner = _through_bottleneck(model, latents.to(weight_of(model)), streams)
        return _decoded(model, inner, streams, steps, chunk_s, callback).float()


def _check_model(model: AudioAutoencoder) -> None:
    if not isinstance(model, AudioAutoencoder):
        raise ValueError(f"reconstruction needs an autoencoder or a diffusion autoencoder, this is a {type(model).__name__}")


def _check_settings(model: AudioAutoencoder, steps: int | None, num_quantizers: int | None, latent_noise: float) -> None:
    if steps is not None and not isinstance(model, DiffusionAutoencoder):
        raise ValueError("steps have no effect: the model decodes in one pass; leave them out")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= latent_noise < math.inf:
        raise ValueError(f"latent_noise must be 0 or more, got {latent_noise:g}")
    if num_quantizers is None:
        return
    if not model.is_discrete:
        raise ValueError("num_quantizers has no effect: the model's latents are continuous; leave it out")
    if not 1 <= num_quantizers <= model.num_quantizers:
        raise ValueError(f"num_quantizers must be 1 to {model.num_quantizers}, got {num_quantizers}")
    if num_quantizers < model.num_quantizers and not (model.bottleneck and model.bottleneck.refines):
        raise ValueError(f"num_quantizers is {num_quantizers}, but the codebooks stand side by side: all {model.num_quantizers} are needed")


def _encoded(model: AudioAutoencoder, clips: Tensor, chunk_s: float | None) -> Tensor:
    """The encoder's output (B, C, frames)."""
    ratio = model.downsampling_ratio
    least = model.min_samples if isinstance(model, DiffusionAutoencoder) else 1
    length = -(-max(clips.shape[-1], least) // _multiple(model)) * _multiple(model)
    audio = cut_or_padded(clips, length).to(weight_of(model))
    function = partial(model.encode, skip_bottleneck=True)
    chunks = _chunks(model, length // ratio, chunk_s, lambda: reach(function, audio, frame_in=ratio, frame_out=1))
    return mapped(function, audio, chunks, frame_in=ratio, frame_out=1)


def _decoder_input(
    model: AudioAutoencoder, encoded: Tensor, streams: list[Stream], num_quantizers: int | None, latent_noise: float
) -> Tensor:
    """What the decoder is given for what the encoder made."""
    noise = latent_noise * noise_like(encoded[:, : model.latent_dim], _generators(streams)) if latent_noise else 0.0
    bottleneck = model.bottleneck
    if num_quantizers is None or bottleneck is None:
        latents = encoded if bottleneck is None else bottleneck.encode(encoded, sample=False)
        return _through_bottleneck(model, latents + noise, streams)
    tokens = bottleneck.tokenize(encoded, sample=False)[:, :num_quantizers]
    inner = each_isolated(bottleneck.decode_tokens, tokens, streams, encoded.device).to(encoded)
    # Channels beyond the latents are noise already.
    return torch.cat([inner[:, : model.latent_dim] + noise, inner[:, model.latent_dim :]], dim=1)


def _through_bottleneck(model: AudioAutoencoder, latents: Tensor, streams: list[Stream]) -> Tensor:
    return latents if model.bottleneck is None else each_isolated(model.bottleneck.decode, latents, streams, latents.device)


def _decoded(
    model: AudioAutoencoder, inner: Tensor, streams: list[Stream], steps: int | None, chunk_s: float | None, callback: Progress | None
) -> Tensor:
    """Audio (B, out_channels, samples) of the decoder's input."""
    ratio, frames = model.downsampling_ratio, inner.shape[-1]
    if isinstance(model, DiffusionAutoencoder):
        return _sampled(model, inner, streams, steps or DECODING_STEPS, _chunks(model, frames, chunk_s, lambda: None), callback)
    function = partial(model.decode, skip_bottleneck=True)
    chunks = _chunks(model, frames, chunk_s, lambda: reach(function, inner, frame_in=1, frame_out=ratio))
    return mapped(function, inner, chunks, frame_in=1, frame_out=ratio, callback=callback)


def _sampled(
    model: DiffusionAutoencoder, inner: Tensor, streams: list[Stream], steps: int, chunks: Chunks | None, callback: Progress | None
) -> Tensor:
    """As `_decoded`, from each item's own noise."""
    total = steps * (1 if chunks is None else len(chunks.starts(inner.shape[-1])))
    done = 0

    def progress(step: Step) -> None:
        nonlocal done
        done += 1
        if callback is not None:
            callback(done, total)

    options: dict[str, Any] = {} if chunks is None else {"chunked": True, "chunk_size": chunks.size, "overlap": chunks.overlap}
    options |= {"steps": steps, "generator": _generators(streams), "callback": progress}
    return model.decode_audio(inner, skip_bottleneck=True, **options)


def _generators(streams: list[Stream]) -> list[torch.Generator]:
    return [generator_for(*stream) for stream in streams]


def _chunks(model: AudioAutoencoder, frames: int, chunk_s: float | None, sides: Callable[[], int | None]) -> Chunks | None:
    multiple = _multiple(model) // model.downsampling_ratio
    return chunks_of(frames, model.sample_rate / model.downsampling_ratio, sides, chunk_s=chunk_s, multiple=multiple)


def _multiple(model: AudioAutoencoder) -> int:
    """What the number of audio samples must be a multiple of."""
    return model.min_input_length if isinstance(model, DiffusionAutoencoder) else model.downsampling_ratio
