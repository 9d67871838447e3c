"""The `loss_configs` block of a diffusion autoencoder's training: what there is beside the denoising loss."""

from __future__ import annotations

from pydantic import Field

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.nn.reconstruction import MultiResolutionSTFT
from stable_audio_tools.training.losses.config import DEFAULT, BottleneckLossConfig, SpectralLossConfig
from stable_audio_tools.training.losses.terms import LossTerm


class DiffusionAutoencoderLossConfig(StrictModel):
    """Losses beside the denoising loss, whose weight is 1."""

    spectral: SpectralLossConfig | None = Field(None, description="default: the resolutions of stable-audio-tools 0.0.x, weight 0.1")
    bottleneck: BottleneckLossConfig | None = None

    @property
    def min_samples(self) -> int:
        """The shortest audio, in samples, that the spectral loss can compare."""
        return self._spectral.config.min_samples

    @property
    def bottleneck_weights(self) -> dict[str, float]:
        """The weights that differ from the defaults, by name."""
        return {} if self.bottleneck is None else self.bottleneck.weights.model_dump(exclude_none=True)

    def build_spectral(self, sample_rate: int) -> tuple[MultiResolutionSTFT, LossTerm]:
        """The spectral loss of audio at `sample_rate` Hz, and how much it counts."""
        spectral = self._spectral
        return MultiResolutionSTFT(spectral.config, sample_rate), LossTerm("mrstft", spectral.weights.mrstft, spectral.decay)

    @property
    def _spectral(self) -> SpectralLossConfig:
        return self.spectral or SpectralLossConfig.model_validate({**DEFAULT["spectral"], "weights": {"mrstft": 0.1}})
