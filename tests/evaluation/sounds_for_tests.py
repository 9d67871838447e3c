"""Clips to measure, and known ways to damage them."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from stable_audio_tools.data.synthetic import SyntheticConfig, SyntheticDataset
from stable_audio_tools.evaluation.clip_sets import Clip
from stable_audio_tools.evaluation.clips import with_noise

RATE, SIZE = 8000, 6000


def real_clips(count, seed=0, channels=1):
    """Sounds of the synthetic dataset, drawn at random; no two seeds share one."""
    sounds = SyntheticDataset(SyntheticConfig(), SIZE, RATE, channels)
    draw = random.Random(seed)
    made = [sounds.sound(draw.choice(sounds.combinations), seed * 10_000 + i)[0] for i in range(count)]
    return [Clip(audio, RATE, f"{seed}-{i}.wav") for i, audio in enumerate(made)]


def changed(clips, change):
    return [Clip(change(clip.audio), clip.sample_rate, clip.name) for clip in clips]


def noisy(clips, snr_db):
    generator = torch.Generator().manual_seed(5)
    return changed(clips, lambda audio: with_noise(audio[None], snr_db, generator)[0])


def low_passed(clips, hertz):
    def cut(audio: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(audio)
        spectrum[..., torch.linspace(0, RATE / 2, spectrum.shape[-1]) > hertz] = 0
        return torch.fft.irfft(spectrum, audio.shape[-1])

    return changed(clips, cut)


def clipped(clips, gain):
    """Peaks at full scale, then driven further by `gain`."""
    return changed(clips, lambda audio: (gain * audio / audio.abs().max()).clamp(-1, 1) * audio.abs().max())


def coded(clips, kept):
    """As a crude codec does: of each block's spectrum only the largest bins are kept, in 256 steps."""

    def code(audio: Tensor) -> Tensor:
        frames = torch.fft.rfft(audio.unfold(-1, 200, 200))
        least = frames.abs().quantile(1 - kept, -1, keepdim=True)
        step = frames.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 256
        rounded = torch.complex((frames.real / step).round(), (frames.imag / step).round()) * step
        return torch.fft.irfft(torch.where(frames.abs() >= least, rounded, 0), 200).flatten(-2)

    return changed(clips, code)
