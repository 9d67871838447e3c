"""The discriminator that came with the Oobleck autoencoder: the waveform at three rates, and folded at five periods.

All networks add up to one score per sound. Module names and the indices in the lists are file format. B batch, C audio channels,
T samples.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import Problem
from stable_audio_tools.nn.conv import WNConv1d, WNConv2d

from .base import (
    GAMES,
    LOSS_TYPE,
    BaseDiscriminatorConfig,
    HeadedDiscriminator,
    Layers,
    LossType,
    Verdict,
    channels_problem,
    in_precision_of,
    layer_distance,
)

WIDTHS, KERNEL, STRIDE = (32, 64, 128, 256), 15, 4
SCALES = 3  # each at half the rate of the one before
PERIODS = (2, 3, 5, 7, 11)

Opinion = tuple[Tensor, Layers]


class OobleckDiscriminatorParams(StrictModel):
    in_channels: PositiveInt | None = Field(None, description="audio channels; default and only choice: those of the model")
    loss_type: LossType = Field("hinge", description=LOSS_TYPE)


class OobleckDiscriminatorConfig(BaseDiscriminatorConfig):
    """Waveforms at several rates and periods, by strided convolutions."""

    type: Literal["oobleck"]
    config: OobleckDiscriminatorParams = OobleckDiscriminatorParams()

    @property
    def min_samples(self) -> int:
        return 2 ** (SCALES - 1)

    def audio_problems(self, sample_rate: int, channels: int) -> list[Problem]:
        return channels_problem("in_channels", self.config.in_channels, channels)

    def build(self, sample_rate: int, channels: int) -> OobleckDiscriminator:
        return OobleckDiscriminator(self.config, channels)


class OobleckDiscriminator(HeadedDiscriminator):
    """One head, whose score is a sum over all networks, and whose layers are those of all of them."""

    def __init__(self, params: OobleckDiscriminatorParams, channels: int):
        super().__init__(GAMES[params.loss_type])
        self.multi_discriminator = Networks(channels)

    def forward(self, audio: Tensor) -> Verdict:
        opinions = [network(audio) for network in self.multi_discriminator.discriminators]
        return [_total(opinions)], [_all_layers(opinions)]

    def feature_distance(self, real: Layers, fake: Layers) -> Tensor:
        """The sum over all layers, not their mean: the published weight counts on it."""
        return torch.stack([layer_distance(*pair) for pair in zip(real, fake, strict=True)]).sum()


class Networks(nn.Module):
    """Holds rates and periods; a level of its own because published keys have it."""

    def __init__(self, channels: int):
        super().__init__()
        self.discriminators = nn.ModuleList([Rates(channels), Periods(channels)])


class Rates(nn.Module):
    """Audio (B, C, T) at its own rate, and at halves of it by averaging neighbours: score (B,) and layers."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.ModuleList(StridedNet(channels, nn.Conv1d) for _ in range(SCALES))

    def forward(self, audio: Tensor) -> Opinion:
        signals = [audio]
        for _ in range(SCALES - 1):
            signals.append(F.avg_pool1d(signals[-1], 2))
        opinions = [net(signal) for net, signal in zip(self.layers, signals, strict=True)]
        return _total(opinions), _all_layers(opinions)


class Periods(nn.Module):
    """Audio (B, C, T) as rows of a period's samples: score (B,) and layers."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.ModuleList(StridedNet(channels, nn.Conv2d) for _ in PERIODS)

    def forward(self, audio: Tensor) -> Opinion:
        rows = [F.pad(audio, (0, -audio.shape[-1] % period)).unflatten(-1, (-1, period)) for period in PERIODS]
        opinions = [net(image) for net, image in zip(self.layers, rows, strict=True)]
        return _total(opinions), _all_layers(opinions)


class StridedNet(nn.Module):
    """Waveform (B, C, T), or rows of it (B, C, rows, period), to a score (B,) and the outputs of its convolutions."""

    def __init__(self, channels: int, kind: type[nn.Conv1d] | type[nn.Conv2d]):
        super().__init__()
        normed = WNConv1d if kind is nn.Conv1d else WNConv2d
        net: list[nn.Module] = []
        for width_in, width_out in zip((channels, *WIDTHS[:-1]), WIDTHS, strict=True):
            net += [normed(width_in, width_out, KERNEL, stride=STRIDE, padding=KERNEL // 2), nn.SiLU()]
        self.net = nn.ModuleList([*net, kind(WIDTHS[-1], 1, 1)])

    def forward(self, x: Tensor) -> Opinion:
        x, features = in_precision_of(self, x), []
        for layer in self.net:
            x = layer(x)
            if not isinstance(layer, nn.SiLU):
                features.append(x)
        return x.flatten(1).mean(-1), features


def _total(opinions: list[Opinion]) -> Tensor:
    return torch.stack([score for score, _ in opinions]).sum(0)


def _all_layers(opinions: list[Opinion]) -> Layers:
    return [layer for _, layers in opinions for layer in layers]
