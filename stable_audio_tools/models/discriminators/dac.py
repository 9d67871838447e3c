"""The discriminator of the Descript audio codec (arXiv:2306.06546): the waveform folded at several periods and at several rates,
and complex spectra in bands.

Module names and the indices in the lists are file format. B batch, C audio channels, T samples.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.conv import WNConv1d, WNConv2d
from stable_audio_tools.nn.decimate import Decimate
from stable_audio_tools.nn.exact import at_least_single

from .base import (
    GAMES,
    LEAST_SQUARES,
    LOSS_TYPE,
    UNIT_HINGE,
    BaseDiscriminatorConfig,
    Game,
    HeadedDiscriminator,
    Layers,
    LossType,
    Verdict,
    in_precision_of,
    use_hinge_alone,
)

PEAK, QUIETEST = 0.8, 1e-9  # level that each channel is brought to, and what keeps silence from being divided by zero
BAND_WIDTH = 32  # channels of the layers that see spectra
HOP = 4  # windows overlap by three quarters

Share = Annotated[float, Field(ge=0, le=1)]
FFTSize = Annotated[int, Field(ge=HOP)]


class DACDiscriminatorParams(StrictModel):
    """Which views of the sound are judged; each is a network of its own."""

    use_hinge: bool = Field(False, description="scores cost no more beyond 0 and 1; false: squared distances from 0 and 1")
    loss_type: LossType | None = Field(None, description=f"{LOSS_TYPE}; default: as use_hinge says")
    rates: tuple[PositiveInt, ...] = Field((), description="judge the waveform at 1/rate of the sample rate, one network each")
    periods: tuple[PositiveInt, ...] = Field((2, 3, 5, 7, 11), description="judge every period-th sample, one network each")
    fft_sizes: tuple[FFTSize, ...] = Field((2048, 1024, 512), description="judge spectra, one network per window length")
    bands: tuple[tuple[Share, Share], ...] = Field(
        ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)),
        min_length=1,
        description="of spectra, each with layers of its own; from and to, as shares of the bins",
    )

    @model_validator(mode="after")
    def _one_game_is_played(self) -> Self:
        use_hinge_alone(self.use_hinge, self.loss_type)
        return self

    @model_validator(mode="after")
    def _something_is_seen(self) -> Self:
        if not (self.rates or self.periods or self.fft_sizes):
            raise ConfigError([Problem((), "rates, periods and fft_sizes are all empty: nothing is judged", "give one of them entries")])
        return self

    @model_validator(mode="after")
    def _bands_have_bins(self) -> Self:
        problems = []
        for size in self.fft_sizes:
            for index, (start, stop) in enumerate(band_bins(self.bands, size)):
                if stop <= start:
                    message = f"no bin of the {size // 2 + 1} of a transform of {size} lies in this band"
                    problems.append(Problem(("bands", index), message, "widen the band, or remove the fft_size", self.bands[index]))
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def game(self) -> Game:
        """What scores cost each player."""
        return GAMES[self.loss_type] if self.loss_type else UNIT_HINGE if self.use_hinge else LEAST_SQUARES

    @property
    def min_samples(self) -> int:
        """The shortest audio, in samples, from which on any length can be judged: reflections need something to reflect."""
        return max([1 + period for period in self.periods] + [*self.rates] + [_shortest_for_spectra(size) for size in self.fft_sizes])


def band_bins(bands: tuple[tuple[float, float], ...], fft_size: int) -> list[tuple[int, int]]:
    """First bin and the one after the last of each band."""
    bins = fft_size // 2 + 1
    return [(int(low * bins), int(high * bins)) for low, high in bands]


def _shortest_for_spectra(fft_size: int) -> int:
    hop = fft_size // HOP
    edge = (fft_size - hop) // 2
    too_short = (length for length in range(edge + hop, 0, -1) if length - -length % hop <= edge)
    return 1 + next(too_short)


class DACDiscriminatorConfig(BaseDiscriminatorConfig):
    """Periods, rates and bands of spectra, as the Descript audio codec was trained with."""

    type: Literal["dac"]
    config: DACDiscriminatorParams

    @property
    def min_samples(self) -> int:
        return self.config.min_samples

    def build(self, sample_rate: int, channels: int) -> DACDiscriminator:
        return DACDiscriminator(self.config, channels)


class DACDiscriminator(HeadedDiscriminator):
    """All views behind the discriminator seam. A head's last layer is its scores, and counts among no features."""

    def __init__(self, params: DACDiscriminatorParams, channels: int):
        super().__init__(params.game)
        self.discriminator = Views(params, channels)

    def forward(self, audio: Tensor) -> Verdict:
        verdicts = self.discriminator(audio)
        return [layers[-1] for layers in verdicts], [layers[:-1] for layers in verdicts]


class Views(nn.Module):
    """Holds one network per view; a level of its own because published keys have it."""

    def __init__(self, params: DACDiscriminatorParams, channels: int):
        super().__init__()
        views: list[nn.Module] = [PeriodView(period, channels) for period in params.periods]
        views += [RateView(rate, channels) for rate in params.rates]
        views += [SpectrumView(size, params.bands) for size in params.fft_sizes]
        self.discriminators = nn.ModuleList(views)

    def forward(self, audio: Tensor) -> list[Layers]:
        level = to_one_level(audio)
        return [view(level) for view in self.discriminators]


def to_one_level(audio: Tensor) -> Tensor:
    """(B, C, T) without its mean and with a peak of 0.8, channel by channel, in at least float32."""
    audio = at_least_single(audio)
    audio = audio - audio.mean(dim=-1, keepdim=True)
    return PEAK * audio / (audio.abs().max(dim=-1, keepdim=True).values + QUIETEST)


class PeriodView(nn.Module):
    """The waveform as rows of `period` samples, judged along the columns (arXiv:2010.05646). (B, C, T) to the layers' outputs."""

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        widths = (channels, 32, 128, 512, 1024, 1024)
        self.convs = nn.ModuleList(
            _with_slope(WNConv2d(a, b, (5, 1), (3, 1) if i < 4 else 1, padding=(2, 0))) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.conv_post = WNConv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, audio: Tensor) -> Layers:
        # A whole row is reflected where none is missing, too.
        padded = F.pad(audio, (0, self.period - audio.shape[-1] % self.period), mode="reflect")
        rows = padded.unflatten(-1, (-1, self.period))
        return _layers(rows, [*self.convs, self.conv_post])


class RateView(nn.Module):
    """The waveform at a `rate`-th of its rate, judged by wide grouped convolutions (arXiv:1910.06711). (B, C, T) to the layers' outputs."""

    def __init__(self, rate: int, channels: int):
        super().__init__()
        self.decimate = Decimate(rate)
        strided: dict[str, Any] = {"stride": 4, "padding": 20}
        self.convs = nn.ModuleList(
            _with_slope(conv)
            for conv in (
                WNConv1d(channels, 16, 15, padding=7),
                WNConv1d(16, 64, 41, groups=4, **strided),
                WNConv1d(64, 256, 41, groups=16, **strided),
                WNConv1d(256, 1024, 41, groups=64, **strided),
                WNConv1d(1024, 1024, 41, groups=256, **strided),
                WNConv1d(1024, 1024, 5, padding=2),
            )
        )
        self.conv_post = WNConv1d(1024, 1, 3, padding=1)

    def forward(self, audio: Tensor) -> Layers:
        return _layers(self.decimate(audio), [*self.convs, self.conv_post])


class SpectrumView(nn.Module):
    """Complex spectra in bands, each channel by itself. (B, C, T) to the layers' outputs, (B C, width, frames, bins)."""

    def __init__(self, fft_size: int, bands: tuple[tuple[float, float], ...]):
        super().__init__()
        self.fft_size, self.bands = fft_size, band_bins(bands, fft_size)
        self.band_convs = nn.ModuleList(_band_layers() for _ in self.bands)
        self.conv_post = WNConv2d(BAND_WIDTH, 1, 3, padding=1)

    def forward(self, audio: Tensor) -> Layers:
        image = self.spectrogram(audio)
        bands = [_layers(image[..., low:high], convs) for (low, high), convs in zip(self.bands, self.band_convs, strict=True)]
        layers = [layer for band in bands for layer in band]
        return [*layers, self.conv_post(torch.cat([band[-1] for band in bands], dim=-1))]

    def spectrogram(self, audio: Tensor) -> Tensor:
        """(B, C, T) to real and imaginary parts (B C, 2, frames, bins); frames start at each hop, as those of a convolution do."""
        hop = self.fft_size // HOP
        edge, missing = (self.fft_size - hop) // 2, -audio.shape[-1] % hop
        padded = F.pad(audio, (edge, edge + missing), mode="reflect").flatten(0, 1)
        window = torch.hann_window(self.fft_size, dtype=audio.dtype, device=audio.device)
        spectrum = torch.stft(padded, self.fft_size, hop, window=window, return_complex=True)[..., 2:-2]
        return torch.view_as_real(spectrum).permute(0, 3, 2, 1)


def _band_layers() -> nn.ModuleList:
    wide: dict[str, Any] = {"kernel_size": (3, 9), "padding": (1, 4)}
    return nn.ModuleList(
        _with_slope(conv)
        for conv in (
            WNConv2d(2, BAND_WIDTH, **wide),
            *(WNConv2d(BAND_WIDTH, BAND_WIDTH, stride=(1, 2), **wide) for _ in range(3)),
            WNConv2d(BAND_WIDTH, BAND_WIDTH, 3, padding=1),
        )
    )


def _with_slope(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.LeakyReLU(0.1))


def _layers(x: Tensor, layers: Any) -> Layers:
    """What each of `layers` gives for the output of the one before it."""
    x, outputs = in_precision_of(layers[0], x), []
    for layer in layers:
        x = layer(x)
        outputs.append(x)
    return outputs
