"""Signals as channels of a short-time Fourier transform and back, for networks that work on spectrograms.

B batch, C channels, T samples, F = num_fft // 2 + 1 frequencies, L frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .exact import FixedBuffers


class STFTChannels(FixedBuffers):
    """Transform with a Hann window, normalised by 1 / sqrt(num_fft), in float32 whatever the signal's precision.

    Args:
        num_fft: samples of a frame.
        hop_length: samples between frames; default a quarter of num_fft.
        window_length: samples of the window; default num_fft.
        use_complex: the two parts are real and imaginary, else magnitude and phase.
    """

    window: Tensor

    def __init__(self, num_fft: int, hop_length: int | None = None, window_length: int | None = None, *, use_complex: bool = False):
        super().__init__()
        self.num_fft, self.hop_length = num_fft, hop_length or num_fft // 4
        self.window_length = window_length or num_fft
        self.use_complex = use_complex
        self.register_buffer("window", torch.hann_window(self.window_length))

    @property
    def channels(self) -> int:
        """Channels that one channel becomes."""
        return 2 * (self.num_fft // 2 + 1)

    def frames(self, length: int) -> int:
        """L of a signal of `length` samples."""
        return 1 + (length - self.num_fft % 2) // self.hop_length

    def encode(self, wave: Tensor) -> Tensor:
        """(B, C, T) to (B, 2 C F, L): the first part of all channels, then the second.

        Raises:
            ValueError: the signal is shorter than half a frame, which the edges are padded with.
        """
        if wave.shape[-1] <= self.num_fft // 2:
            raise ValueError(f"{wave.shape[-1]} samples are too short for a transform of {self.num_fft}; at least {self.num_fft // 2 + 1}")
        spectrum = torch.stft(
            wave.float().flatten(0, 1), self.num_fft, self.hop_length, self.window_length, self.window, normalized=True, return_complex=True
        )
        parts = (spectrum.real, spectrum.imag) if self.use_complex else (spectrum.abs(), spectrum.angle())
        return torch.cat([part.unflatten(0, wave.shape[:2]).flatten(1, 2) for part in parts], dim=1).to(wave.dtype)

    def decode(self, channels: Tensor, length: int) -> Tensor:
        """(B, 2 C F, L) to (B, C, length)."""
        first, second = channels.float().unflatten(1, (2, -1, self.num_fft // 2 + 1)).unbind(1)
        spectrum = torch.complex(first, second) if self.use_complex else torch.complex(first * second.cos(), first * second.sin())
        wave = torch.istft(
            spectrum.flatten(0, 1), self.num_fft, self.hop_length, self.window_length, self.window, normalized=True, length=length
        )
        return wave.unflatten(0, first.shape[:2]).to(channels.dtype)
