"""What stands between encoder and decoder: it shapes the latent space and may add a loss of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel

Info = dict[str, Any]


class Bottleneck(nn.Module, ABC):
    """Encoder output (B, C, T) -> latents -> decoder input. A kind of bottleneck implements `encode_with_info`.

    is_discrete: latents are codebook entries, and there are tokens.
    """

    is_discrete = False

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


class BaseBottleneckConfig(StrictModel):
    """Wiring around a bottleneck, and the widths it asks of its neighbours."""

    requires_grad: bool = Field(True, description="false freezes the bottleneck's weights, if it has any")

    @property
    def kind(self) -> str:
        """The name in the config."""
        return self.type  # type: ignore[attr-defined]

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
