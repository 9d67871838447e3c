"""Audio to a model's latents, and latents or tokens to audio, in chunks where it is long; see `long_audio`.

B batch, C channels, K codebooks, T latent frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from stable_audio_tools.models.autoencoders.chunking import Chunks
from stable_audio_tools.models.pretransforms import Pretransform
from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransform

from .isolation import Stream, each_isolated
from .long_audio import CHUNK_S, chunks_of, mapped, reach


def decode_latents(
    pretransform: Pretransform, latents: Tensor, sample_rate: int, streams: Sequence[Stream], *, chunked: bool | None = None
) -> Tensor:
    """Audio (B, C, samples) of latents (B, C, T).

    Args:
        sample_rate: of the audio, in Hz.
        streams: of each item, for noise that a bottleneck puts beside the latents.
        chunked: True: in chunks of 20 s; False: in one pass, or as the pretransform's config says; default: in chunks where it is long.

    Raises:
        ValueError: chunks are asked for where no network decodes.
    """
    check_chunkable(pretransform, chunked)
    ratio = pretransform.downsampling_ratio
    sides = partial(reach, pretransform.decode, latents, frame_in=1, frame_out=ratio)
    chunks = _chunks(pretransform, latents.shape[-1], sample_rate, chunked, sides)
    decode = partial(mapped, pretransform.decode, chunks=chunks, frame_in=1, frame_out=ratio)
    return each_isolated(decode, latents, streams, latents.device) if _draws(pretransform) else decode(latents)


def encode_audio(pretransform: Pretransform, audio: Tensor, sample_rate: int) -> Tensor:
    """Latents (B, C, T) of audio (B, C, samples), in chunks where it is long."""
    ratio = pretransform.downsampling_ratio
    sides = partial(reach, pretransform.encode, audio, frame_in=ratio, frame_out=1)
    chunks = _chunks(pretransform, audio.shape[-1] // ratio, sample_rate, None, sides)
    return mapped(pretransform.encode, audio, chunks, frame_in=ratio, frame_out=1)


def decode_tokens(
    pretransform: Pretransform, tokens: Tensor, sample_rate: int, streams: Sequence[Stream], *, chunked: bool | None = None
) -> Tensor:
    """Audio (B, C, samples) of tokens (B, K, T), with noise that a bottleneck adds out of each item's own stream; see `decode_latents`."""
    ratio = pretransform.downsampling_ratio
    if not isinstance(pretransform, AutoencoderPretransform) or pretransform.model.bottleneck is None:
        chunks = _chunks(pretransform, tokens.shape[-1], sample_rate, chunked, lambda: None)
        return mapped(pretransform.decode_tokens, tokens, chunks, frame_in=1, frame_out=ratio)
    weight = next(pretransform.parameters())
    latents = each_isolated(pretransform.model.bottleneck.decode_tokens, tokens, streams, weight.device).to(weight)
    function = partial(
        pretransform.model.decode_audio, chunked=pretransform.chunked, skip_bottleneck=True, iterate_batch=pretransform.iterate_batch
    )
    sides = partial(reach, function, latents, frame_in=1, frame_out=ratio)
    chunks = _chunks(pretransform, latents.shape[-1], sample_rate, chunked, sides)
    return mapped(function, latents, chunks, frame_in=1, frame_out=ratio)


def check_chunkable(pretransform: Pretransform | None, chunked: bool | None) -> None:
    """Raises ValueError where chunks are asked for and there is no network to decode in them."""
    if chunked and not _has_network(pretransform):
        what = "has no pretransform" if pretransform is None else f"decodes by {type(pretransform).__name__}, which is no network"
        raise ValueError(f"chunked_decode has no effect: the model {what}; leave it out")


def _has_network(pretransform: Pretransform | None) -> bool:
    return pretransform is not None and next(pretransform.parameters(), None) is not None


def _draws(pretransform: Pretransform) -> bool:
    """Whether decoding draws random numbers."""
    bottleneck = pretransform.model.bottleneck if isinstance(pretransform, AutoencoderPretransform) else None
    return getattr(bottleneck, "noise_augment_dim", 0) > 0


def _chunks(
    pretransform: Pretransform, frames: int, sample_rate: int, chunked: bool | None, sides: Callable[[], int | None]
) -> Chunks | None:
    """None: as the pretransform does by itself."""
    if chunked is False or not _has_network(pretransform) or (chunked is None and getattr(pretransform, "chunked", False)):
        return None
    return chunks_of(frames, sample_rate / pretransform.downsampling_ratio, sides, chunk_s=CHUNK_S if chunked else None)
