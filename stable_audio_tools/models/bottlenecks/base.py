"""What stands between encoder and decoder: it shapes the latent space and may add a loss of its own.

Tokens, where there are any, are (B, Q, T) int64 everywhere: item, codebook, latent frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel

Info = dict[str, Any]


class Bottleneck(nn.Module, ABC):
    """Encoder output (B, C, T) -> latents -> decoder input. A kind of bottleneck implements `encode_with_info`.

    num_quantizers, codebook_size: how many tokens a frame has and how many values each may take; 0 without tokens.
    refines: each codebook refines those before it, so that the first few tokens of a frame alone stand for it too.
    """

    num_quantizers = 0
    codebook_size = 0
    refines: ClassVar[bool] = False

    @property
    def is_discrete(self) -> bool:
        """Latents are codebook entries, and there are tokens."""
        return self.num_quantizers > 0

    def encode(self, x: Tensor, return_info: bool = False, *, sample: bool = True) -> Any:
        """Latents (B, C', T), or `(latents, info)` with `return_info`.

        `sample=False` gives the most likely latents where encoding is random, and draws no random number.
        """
        latents, info = self.encode_with_info(x, sample=sample)
        return (latents, info) if return_info else latents

    @abstractmethod
    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        """The latents, and what else is known about them, such as the loss term `kl`."""

    def decode(self, latents: Tensor) -> Tensor:
        """The decoder's input for these latents."""
        return latents

    def tokenize(self, x: Tensor, *, sample: bool = True) -> Tensor:
        """The encoder's output (B, C, T) as tokens (B, Q, T); never changes a codebook, in training mode neither.

        Raises:
            ValueError: this bottleneck has no tokens.
        """
        raise ValueError(f"{type(self).__name__} is continuous: it has no tokens")

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """The decoder's input for `tokens` (B, Q, T), the same that `decode` gives for the latents they stand for.

        The first few codebooks alone will do where one `refines` another.

        Raises:
            ValueError: this bottleneck has no tokens, or these are not its own.
        """
        raise ValueError(f"{type(self).__name__} is continuous: it has no tokens")


def append_noise(latents: Tensor, channels: int) -> Tensor:
    """(B, C, T) -> (B, C + channels, T): normal noise beside the latents, from which a decoder makes what they leave open."""
    if not channels:
        return latents
    noise = torch.randn(len(latents), channels, latents.shape[-1], device=latents.device, dtype=latents.dtype)
    return torch.cat([latents, noise], dim=1)


def check_tokens(tokens: Tensor, num_quantizers: int, codebook_size: int, *, fewer: bool = False) -> None:
    """Raises ValueError unless `tokens` is (B, num_quantizers, T), integer, each in 0..codebook_size-1; `fewer` codebooks may do too."""
    count = tokens.shape[1] if tokens.ndim == 3 else 0
    if count != num_quantizers and not (fewer and 0 < count < num_quantizers):
        wanted = f"1..{num_quantizers}" if fewer and num_quantizers > 1 else num_quantizers
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}, expected (batch, {wanted}, frames)")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens must be integers, these are {tokens.dtype}")
    if tokens.numel() and bool(((tokens < 0) | (tokens >= codebook_size)).any()):
        found = f"{int(tokens.min())}..{int(tokens.max())}"
        raise ValueError(f"tokens lie in {found}, expected 0..{codebook_size - 1}: mask tokens have no sound")


class BaseBottleneckConfig(StrictModel):
    """Wiring around a bottleneck, and the widths it asks of its neighbours.

    `latent_key` names the key of the inner `config` that decides `latent_channels`, for messages. `loss_terms` are the terms that it adds
    to the loss in training, by the names that their weights have.
    """

    latent_key: ClassVar[str] = ""
    loss_terms: ClassVar[tuple[str, ...]] = ()

    requires_grad: bool = Field(True, description="false freezes the bottleneck's weights, if it has any")

    @property
    def kind(self) -> str:
        """The name in the config."""
        return self.type  # type: ignore[attr-defined]

    @property
    def num_quantizers(self) -> int:
        """Tokens of a frame; 0 without tokens."""
        return 0

    @property
    def codebook_size(self) -> int:
        """Values a token may take; 0 without tokens."""
        return 0

    @property
    def is_discrete(self) -> bool:
        """There are tokens."""
        return self.num_quantizers > 0

    @property
    def latent_channels(self) -> int | None:
        """The latent channels it is made for; None: any number."""
        return None

    def encoder_channels(self, latent_dim: int) -> int:
        """Channels the encoder must give for `latent_dim` latent channels."""
        return latent_dim

    def decoder_channels(self, latent_dim: int) -> int:
        """Channels the decoder gets for `latent_dim` latent channels."""
        return latent_dim

    @abstractmethod
    def make(self) -> Bottleneck:
        """The module of this config; `build` then sets what is trained."""

    def build(self) -> Bottleneck:
        return self.make().requires_grad_(self.requires_grad)
