"""Discrete wavelet transform with biorthogonal spline wavelets: octave bands that are perfectly reconstructed.

Cohen, Daubechies and Feauveau 1992, "Biorthogonal bases of compactly supported wavelets" (Comm. Pure Appl. Math. 45).
B batch, C audio channels, T samples.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.nn.exact import FixedBuffers, in_full_precision

from .base import Pretransform, WeightlessPretransformConfig

Wavelet = Literal["bior2.2", "bior2.4", "bior2.6", "bior2.8", "bior4.4", "bior6.8"]

# The first half of each symmetric lowpass, up to its middle tap, scaled to sum 1: analysis, then synthesis. In `biorR.D` the synthesis
# filter has R zeros at half the sample rate and the analysis filter D; what else the two need to be inverses of each other
# (Daubechies' polynomial of degree (R + D) / 2 - 1) is all in the analysis filter of bior2.*, and split in the others.
LOWPASS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "bior2.2": ((-1 / 8, 1 / 4, 3 / 4), (1 / 4, 1 / 2)),
    "bior2.4": ((3 / 128, -3 / 64, -1 / 8, 19 / 64, 45 / 64), (1 / 4, 1 / 2)),
    "bior2.6": ((-5 / 1024, 5 / 512, 17 / 512, -39 / 512, -123 / 1024, 81 / 256, 175 / 256), (1 / 4, 1 / 2)),
    "bior2.8": (
        (35 / 2**15, -35 / 2**14, -75 / 2**13, 335 / 2**14, 307 / 2**13, -1563 / 2**14, -949 / 2**13, 5359 / 2**14, 11025 / 2**14),
        (1 / 4, 1 / 2),
    ),
    "bior4.4": (
        (0.02674875741081009, -0.016864118442874953, -0.07822326652899027, 0.26686411844287494, 0.6029490182363604),
        (-0.045635881557125044, -0.02877176311425009, 0.29563588155712506, 0.5575435262285002),
    ),
    "bior6.8": (
        (
            *(0.001349747865012655, -0.0013536047030044413, -0.012014196667083483, 0.008439012039808296, 0.03516647330653814),
            *(-0.05463331368252564, -0.06650990062485847, 0.29754790634572176, 0.5840157522407823),
        ),
        (
            *(0.01020092218703835, 0.010230070819358547, -0.05566486077998765, -0.028544471715179397),
            *(0.2954639385929493, 0.5366288017916417),
        ),
    ),
}


class WaveletParams(StrictModel):
    channels: PositiveInt = Field(description="audio channels")
    levels: PositiveInt = Field(description="how often the low band is split; the ratio is 2 ** levels")
    wavelet: Wavelet = Field(description="longer filters separate the bands better")


class WaveletConfig(WeightlessPretransformConfig):
    type: Literal["wavelet"]
    config: WaveletParams

    @property
    def io_channels(self) -> int:
        return self.config.channels

    @property
    def encoded_channels(self) -> int:
        return self.config.channels * self.downsampling_ratio

    @property
    def downsampling_ratio(self) -> int:
        return 2**self.config.levels

    def build(self, sample_rate: int) -> WaveletPretransform:
        return WaveletPretransform(self.config)


class WaveletPretransform(Pretransform):
    """Audio (B, C, T) <-> (B, C * 2^levels, T / 2^levels): the lowest band first, then bands in rising order.

    A band with a higher rate than the lowest one is spread over several channels, sample i of each frame in the ith group of C.
    Audio is mirrored at its ends, so that decoding is exact everywhere.
    """

    def __init__(self, params: WaveletParams):
        ratio = 2**params.levels
        super().__init__(io_channels=params.channels, encoded_channels=params.channels * ratio, downsampling_ratio=ratio)
        self.levels = params.levels
        self.encoder = WaveletSplit(params.channels, params.wavelet)
        self.decoder = WaveletMerge(params.channels, params.wavelet)

    def encode(self, audio: Tensor) -> Tensor:
        self.check_audio(audio)
        self._check_length(audio.shape[-1])
        return in_full_precision(self._split, audio)

    def decode(self, latents: Tensor) -> Tensor:
        self.check_latents(latents)
        self._check_length(latents.shape[-1] * self.downsampling_ratio)
        return in_full_precision(self._merge, latents)

    def _split(self, x: Tensor) -> Tensor:
        for _ in range(self.levels):
            low, rest = x[:, : self.io_channels], x[:, self.io_channels :]
            x = torch.cat((self.encoder(low), fold(rest, self.io_channels)), dim=1)
        return x

    def _merge(self, x: Tensor) -> Tensor:
        for _ in range(self.levels):
            low, rest = x[:, : 2 * self.io_channels], x[:, 2 * self.io_channels :]
            x = torch.cat((self.decoder(low), unfold(rest, self.io_channels)), dim=1)
        return x

    def _check_length(self, samples: int) -> None:
        """A signal is mirrored once, so it must be longer than what the filters see of its mirror image."""
        shortest = self.encoder.margin * self.downsampling_ratio // 2
        if samples <= shortest:
            raise ValueError(f"{samples} samples are too few for {self.levels} levels of this wavelet: pad them to more than {shortest}")


class WaveletSplit(FixedBuffers):
    """(B, C, T) -> (B, 2 C, T / 2): the low band of every channel, then every high band. kernel: (2 C, C, taps)."""

    kernel: Tensor

    def __init__(self, channels: int, wavelet: Wavelet):
        super().__init__()
        analysis, synthesis = LOWPASS[wavelet]
        self.margin = len(analysis) - 1
        filters = symmetric(analysis, self.margin), symmetric(synthesis, self.margin, shift=1, highpass=True)
        self.register_buffer("kernel", per_channel(filters, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, (self.margin, self.margin), "reflect"), self.kernel.to(x.dtype), stride=2)


class WaveletMerge(FixedBuffers):
    """(B, 2 C, T / 2) -> (B, C, T), the inverse of `WaveletSplit`. kernel: (2 C, C, taps)."""

    kernel: Tensor

    def __init__(self, channels: int, wavelet: Wavelet):
        super().__init__()
        analysis, synthesis = LOWPASS[wavelet]
        self.channels, self.margin = channels, len(analysis) - 1
        filters = symmetric(synthesis, self.margin, shift=-1), symmetric(analysis, self.margin, highpass=True)
        self.register_buffer("kernel", per_channel(filters, channels))

    def forward(self, x: Tensor) -> Tensor:
        # The two bands taken in turn mirror as the signal does: around the first and around the last sample.
        merged = unfold(x, self.channels)
        bands = fold(F.pad(merged, (self.margin, self.margin), "reflect"), self.channels)
        start = 2 * self.margin - 1
        return F.conv_transpose1d(bands, self.kernel.to(x.dtype), stride=2)[..., start : start + merged.shape[-1]]


def symmetric(half: tuple[float, ...], margin: int, *, shift: int = 0, highpass: bool = False) -> Tensor:
    """(2 margin + 1,) float64: a symmetric filter of gain sqrt 2 whose middle tap stands `shift` behind the middle.

    Args:
        half: the lowpass up to its middle tap.
        highpass: every second tap negated, the middle one among them.
    """
    lowpass = torch.tensor((*half, *half[-2::-1]), dtype=torch.float64) * 2**0.5
    offset = torch.arange(len(lowpass)) - (len(half) - 1)
    taps = torch.where(offset % 2 == 0, -lowpass, lowpass) if highpass else lowpass
    room = margin - (len(half) - 1)
    return F.pad(taps, (room + shift, room - shift))


def per_channel(filters: tuple[Tensor, Tensor], channels: int) -> Tensor:
    """Two filters (taps,) applied to each channel, as the weight (2 C, C, taps) of a convolution; float32."""
    kernel = torch.stack(filters)[:, None, None] * torch.eye(channels, dtype=torch.float64)[..., None]
    return kernel.flatten(0, 1).float()


def fold(x: Tensor, channels: int) -> Tensor:
    """(B, N C, T) -> (B, 2 N C, T / 2): samples in turn to two groups of C channels."""
    groups = x.shape[1] // channels
    return x.unflatten(1, (groups, channels)).unflatten(-1, (-1, 2)).permute(0, 1, 4, 2, 3).flatten(1, 3)


def unfold(x: Tensor, channels: int) -> Tensor:
    """(B, 2 N C, T / 2) -> (B, N C, T), the inverse of `fold`."""
    groups = x.shape[1] // (2 * channels)
    return x.unflatten(1, (groups, 2, channels)).permute(0, 1, 3, 4, 2).flatten(3, 4).flatten(1, 2)
