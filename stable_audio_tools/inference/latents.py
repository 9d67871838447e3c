"""The part of a model that makes latents of audio, in the form in which latents are stored, and how to know it again.

B batch, C channels, Q codebooks, T audio samples or latent frames.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.chunking import Chunks
from stable_audio_tools.models.bottlenecks.continuous import VAEBottleneck, mean_and_deviation
from stable_audio_tools.models.pretransforms import Pretransform
from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransform

Stored = Literal["distribution", "sample", "mean", "latents", "tokens"]
"""What is stored of an item: a variational bottleneck's means and deviations, one draw from them, or the means; what any other
bottleneck gives; or its tokens."""

PROBE_FRAMES = 32  # chosen: beyond the receptive field of a frame, and a second of CPU time for the largest published autoencoder
SAME_LATENTS = 0.01  # chosen: float16 weights are about 0.001 off in root mean square, another encoder more than 1
SAME_IN_BFLOAT16 = 0.1  # chosen: of weights with 8 bits
SAME_TOKENS = 0.05  # chosen: share of tokens that rounding may move to a neighbour


class LatentEncoder:
    """Audio (B, io_channels, T) to what is stored, and back.

    Latents are the encoder's own, whatever scale a pretransform divides them by.

    Args:
        part: an autoencoder, or the pretransform of a model.
        chunks: how whole files are encoded; None: as the model does.
    """

    def __init__(self, part: AudioAutoencoder | Pretransform, chunks: Chunks | None = None):
        self.part = part
        self.autoencoder = part.model if isinstance(part, AutoencoderPretransform) else part if isinstance(part, AudioAutoencoder) else None
        as_model = Chunks() if isinstance(part, AutoencoderPretransform) and part.chunked else None
        chosen = chunks or as_model
        self._options: dict[str, Any] = {} if chosen is None else {"chunked": True, "chunk_size": chosen.size, "overlap": chosen.overlap}

    @classmethod
    def of(cls, model: nn.Module, chunks: Chunks | None = None) -> LatentEncoder | None:
        """The encoder of a model: itself, or its pretransform; None: it has none."""
        if isinstance(model, AudioAutoencoder | Pretransform):
            return cls(model, chunks)
        pretransform = getattr(model, "pretransform", None)
        return cls(pretransform, chunks) if isinstance(pretransform, Pretransform) else None

    @property
    def downsampling_ratio(self) -> int:
        return self.part.downsampling_ratio

    @property
    def io_channels(self) -> int:
        return self.part.in_channels if isinstance(self.part, AudioAutoencoder) else self.part.io_channels

    @property
    def is_variational(self) -> bool:
        """Latents are drawn from distributions, of which mean and deviation are known."""
        return self.autoencoder is not None and isinstance(self.autoencoder.bottleneck, VAEBottleneck)

    @property
    def default(self) -> Stored:
        """What gives training from storage the same batches as encoding on the fly."""
        if not self.is_variational:
            return "latents"
        assert self.autoencoder is not None and isinstance(self.autoencoder.bottleneck, VAEBottleneck)
        return "mean" if self.autoencoder.bottleneck.mode == "mean" else "distribution"

    def channels(self, stored: Stored) -> int:
        """C, or Q of tokens."""
        if stored == "tokens":
            return self.part.num_quantizers
        return self._other.encoded_channels if self.autoencoder is None else self.autoencoder.latent_dim

    @property
    def _other(self) -> Pretransform:
        """The pretransform that is no autoencoder."""
        assert isinstance(self.part, Pretransform)
        return self.part

    @torch.no_grad()
    def encode(self, audio: Tensor, stored: Stored) -> Tensor:
        """Audio (B, C, T) to float32 (B, C, frames), (B, 2 C, frames) of a distribution or of what is to be drawn, or tokens int64."""
        audio = self._cast(audio)
        if self.autoencoder is None:
            return self._other.tokenize(audio) if stored == "tokens" else self._other.encode(audio).float()
        if stored == "tokens":
            return self.autoencoder.tokenize(audio, sample=False, **self._options)
        encode = partial(self.autoencoder.encode_audio, audio, **self._options)
        if stored in ("distribution", "sample"):
            return torch.cat(mean_and_deviation(encode(skip_bottleneck=True)), dim=1).float()
        return encode(sample=False).float()

    @torch.no_grad()
    def decode(self, latents: Tensor, *, tokens: bool) -> Tensor:
        """Latents (B, C, frames), or tokens (B, Q, frames), to audio (B, C, T) float32."""
        if tokens:
            return self.part.decode_tokens(latents.to(self._cast(latents).device)).float()
        latents = self._cast(latents)
        return (
            self._other.decode(latents) if self.autoencoder is None else self.autoencoder.decode_audio(latents, **self._options)
        ).float()

    def _cast(self, x: Tensor) -> Tensor:
        """On the device of the weights and in their precision; as it is without weights."""
        weights = next(self.part.parameters(), x)
        return x.to(weights.device, weights.dtype)

    def fingerprint(self) -> str:
        """A hash of the weights that latents depend on, which are all but a decoder's."""
        digest = hashlib.sha256()
        of = self.part.state_dict() if self.autoencoder is None else self.autoencoder.state_dict()
        for name, tensor in sorted(of.items()):
            if not name.startswith("decoder."):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def probe(self, stored: Stored) -> Tensor:
        """What the encoder makes of a fixed signal, without a draw: (C, frames) or (2 C, frames) on the CPU."""
        return self.encode(sweep(self.io_channels, PROBE_FRAMES * self.downsampling_ratio)[None], stored)[0].cpu()

    def differs_from(self, probe: Tensor, stored: Stored) -> float | None:
        """How far the encoder is from the one that gave `probe`; None: it is the same, up to rounding."""
        own = self.probe(stored)
        if own.shape != probe.shape:
            return math.inf
        if stored == "tokens":
            moved = float((own != probe).double().mean())
            return moved if moved > SAME_TOKENS else None
        own, probe = own.double(), probe.double()
        distance = float((own - probe).square().mean().sqrt() / probe.square().mean().sqrt().clamp_min(1e-12))
        rough = next(self.part.parameters(), own).dtype == torch.bfloat16
        return None if distance <= (SAME_IN_BFLOAT16 if rough else SAME_LATENTS) else distance


def sweep(channels: int, length: int) -> Tensor:
    """(channels, length) of a tone that rises from silence to the Nyquist frequency, in every other channel reversed in time."""
    t = torch.arange(length, dtype=torch.float64)
    tone = 0.5 * torch.sin(0.5 * math.pi * t * t / length).float()
    return torch.stack([tone.flip(0) if channel % 2 else tone for channel in range(channels)])
