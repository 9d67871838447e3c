"""BigVGAN's discriminator: the waveform at several periods (arXiv:2206.04658), and constant-Q spectra by octave (arXiv:2311.14957).

Module names and the indices in the lists are file format: `mpd` as in upstream, below `cqt` as BigVGAN's authors name them. B batch,
C audio channels, T samples; inside, images of frames x bins.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.constant_q import ConstantQ
from stable_audio_tools.nn.conv import WNConv2d

from .base import (
    GAMES,
    LOSS_TYPE,
    BaseDiscriminatorConfig,
    Discriminator,
    HeadedDiscriminator,
    Layers,
    LossType,
    Verdict,
    channels_problem,
    in_precision_of,
    use_hinge_alone,
)
from .dac import DACDiscriminator, DACDiscriminatorParams, to_one_level

KERNEL = (3, 9)  # over frames and bins
SMALLEST_SCALE = 1e-8  # of a layer's activations; BigVGAN's authors divide by them as they are


class BigVGANDiscriminatorParams(StrictModel):
    """Periods, and constant-Q spectra, one network each."""

    use_hinge: bool = Field(False, description="of the periods: scores cost no more beyond 0 and 1; false: squared distances")
    loss_type: LossType | None = Field(None, description=f"{LOSS_TYPE}; default: as use_hinge says, lsgan for spectra")
    periods: tuple[PositiveInt, ...] = Field((2, 3, 5, 7, 11), min_length=1, description="judge every period-th sample, one network each")
    cqtd_filters: PositiveInt = Field(32, description="channels of the first layer that sees all octaves")
    cqtd_max_filters: PositiveInt = Field(1024, description="layers are never wider than this")
    cqtd_filters_scale: PositiveInt = Field(1, description="growth of the width per layer")
    cqtd_dilations: tuple[PositiveInt, ...] = Field((1, 2, 4), description="over frames, one layer each")
    cqtd_in_channels: PositiveInt | None = Field(None, description="audio channels; default and only choice: those of the model")
    cqtd_out_channels: PositiveInt = Field(1, description="scores per frame and bin")
    cqtd_hop_lengths: tuple[PositiveInt, ...] = Field((512, 256, 256), min_length=1, description="samples between frames, one network each")
    cqtd_n_octaves: tuple[PositiveInt, ...] = Field((9, 9, 9), description="octaves from fmin on, each with a first layer of its own")
    cqtd_bins_per_octaves: tuple[PositiveInt, ...] = Field((24, 36, 48), description="notes of an octave")
    cqtd_normalize_volume: bool = Field(False, description="spectra are of audio at one level, as the periods are anyway")
    fmin: float = Field(32.7, gt=0, description="Hz of the lowest note")

    @model_validator(mode="after")
    def _one_game_is_played(self) -> Self:
        use_hinge_alone(self.use_hinge, self.loss_type)
        return self

    @model_validator(mode="after")
    def _spectra_are_complete(self) -> Self:
        count = len(self.cqtd_hop_lengths)
        problems = [
            Problem((name,), f"{len(values)} entries for {count} cqtd_hop_lengths", "give one per network")
            for name, values in (("cqtd_n_octaves", self.cqtd_n_octaves), ("cqtd_bins_per_octaves", self.cqtd_bins_per_octaves))
            if len(values) != count
        ]
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def of_periods(self) -> DACDiscriminatorParams:
        """The part that is a discriminator of the Descript codec, seeing periods alone."""
        return DACDiscriminatorParams(use_hinge=self.use_hinge, loss_type=self.loss_type, periods=self.periods, rates=(), fft_sizes=())


class BigVGANDiscriminatorConfig(BaseDiscriminatorConfig):
    """Periods and constant-Q spectra; the losses of both are added."""

    type: Literal["big_vgan"]
    config: BigVGANDiscriminatorParams = BigVGANDiscriminatorParams()

    @property
    def min_samples(self) -> int:
        return self.config.of_periods.min_samples

    def audio_problems(self, sample_rate: int, channels: int) -> list[Problem]:
        found = channels_problem("cqtd_in_channels", self.config.cqtd_in_channels, channels)
        if self.config.fmin >= sample_rate / 2:
            message = f"the lowest note, {self.config.fmin:g} Hz, is not below half the sample rate of {sample_rate} Hz"
            found.append(Problem(("config", "fmin"), message, f"lower it below {sample_rate / 2:g}", self.config.fmin))
        return found

    def build(self, sample_rate: int, channels: int) -> BigVGANDiscriminator:
        return BigVGANDiscriminator(self.config, sample_rate, channels)


class BigVGANDiscriminator(Discriminator):
    """Two discriminators whose losses are added."""

    def __init__(self, params: BigVGANDiscriminatorParams, sample_rate: int, channels: int):
        super().__init__()
        self.mpd = DACDiscriminator(params.of_periods, channels)
        self.cqt = ConstantQDiscriminator(params, sample_rate, channels)

    def discriminator_loss(self, reals: Tensor, fakes: Tensor) -> Tensor:
        return self.mpd.discriminator_loss(reals, fakes) + self.cqt.discriminator_loss(reals, fakes)

    def generator_loss(self, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
        (adversarial, features), (more_adversarial, more_features) = (part.generator_loss(reals, fakes) for part in (self.mpd, self.cqt))
        return adversarial + more_adversarial, features + more_features


class ConstantQDiscriminator(HeadedDiscriminator):
    """One network per constant-Q spectrum; feature distances are relative to the recording's activations."""

    def __init__(self, params: BigVGANDiscriminatorParams, sample_rate: int, channels: int):
        super().__init__(GAMES[params.loss_type or "lsgan"], relative_to=SMALLEST_SCALE)
        self.normalize_volume = params.cqtd_normalize_volume
        spectra = zip(params.cqtd_hop_lengths, params.cqtd_n_octaves, params.cqtd_bins_per_octaves, strict=True)
        self.discriminators = nn.ModuleList(
            OctaveNet(
                params, channels, ConstantQ(sample_rate, hop_length=hop, n_octaves=octaves, bins_per_octave=bins, fmin=params.fmin), bins
            )
            for hop, octaves, bins in spectra
        )

    def forward(self, audio: Tensor) -> Verdict:
        heard = to_one_level(audio) if self.normalize_volume else audio
        verdicts = [network(heard) for network in self.discriminators]
        return [scores for scores, _ in verdicts], [features for _, features in verdicts]


class OctaveNet(nn.Module):
    """Audio (B, C, T) to scores (B, out_channels, frames, bins) and the activations of each layer behind those of single octaves."""

    def __init__(self, params: BigVGANDiscriminatorParams, channels: int, transform: ConstantQ, bins_per_octave: int):
        super().__init__()
        self.cqt_transform, self.bins_per_octave = transform, bins_per_octave
        layers = len(params.cqtd_dilations) + 2
        widths = [min(params.cqtd_filters * params.cqtd_filters_scale**i, params.cqtd_max_filters) for i in range(layers)]
        parts = 2 * channels
        self.conv_pres = nn.ModuleList(nn.Conv2d(parts, parts, KERNEL, padding=_same(KERNEL)) for _ in transform.octaves)
        convs: list[nn.Module] = [nn.Conv2d(parts, widths[0], KERNEL, padding=_same(KERNEL))]
        for width_in, width_out, dilation in zip(widths[:-2], widths[1:-1], params.cqtd_dilations, strict=True):
            padding = _same(KERNEL, dilation)
            convs.append(WNConv2d(width_in, width_out, KERNEL, stride=(1, 2), dilation=(dilation, 1), padding=padding))
        convs.append(WNConv2d(widths[-2], widths[-1], 3, padding=1))
        self.convs = nn.ModuleList(convs)
        self.conv_post = WNConv2d(widths[-1], params.cqtd_out_channels, 3, padding=1)
        self.activation = nn.LeakyReLU(0.1)

    def forward(self, audio: Tensor) -> tuple[Tensor, Layers]:
        spectrum = self.cqt_transform(audio)
        image = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)
        octaves = in_precision_of(self, image).split(self.bins_per_octave, dim=-1)
        x = torch.cat([conv(octave) for conv, octave in zip(self.conv_pres, octaves, strict=True)], dim=-1)
        features = []
        for conv in self.convs:
            x = self.activation(conv(x))
            features.append(x)
        return self.conv_post(x), features


def _same(kernel: tuple[int, int], dilation: int = 1) -> tuple[int, int]:
    """The padding that keeps frames and bins, frames being dilated."""
    return (kernel[0] - 1) * dilation // 2, (kernel[1] - 1) // 2
