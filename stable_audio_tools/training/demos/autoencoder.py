"""Demos of an autoencoder: the same clips each time, original beside reconstruction."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.training.demos.base import Demo, DemoCallback
from stable_audio_tools.training.demos.config import AutoencoderDemoConfig


class AutoencoderDemoCallback(DemoCallback):
    """Reconstructs the first `max_demos` clips of the data."""

    def __init__(self, config: AutoencoderDemoConfig, **kwargs: Any):
        super().__init__(config.demo_every, **kwargs)
        self.max_demos = config.max_demos
        self._clips: tuple[Tensor, list[str]] | None = None

    def render(self, module: Any) -> list[Demo]:
        clips, names = self._first_clips()
        weights = next(module.sampling_model.parameters())  # they may be of half precision
        found = self.reconstructions(module, clips.to(weights))
        demos = []
        for index, (name, original) in enumerate(zip(names, clips, strict=True)):
            demos.append(Demo(f"{name}, original", original, "original", name))
            for title, decoded, latents in found:
                audio = decoded[index].to(original)
                info = _likeness(original, audio)
                demos.append(Demo(f"{name}, {title}", audio, "reconstruction", name, info=info, latents=latents[index]))
        return demos

    def reconstructions(self, module: Any, clips: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        """Titles, audio and latents of `clips` (B, C, T) through the sampling model; some samples may be lost at the end."""
        found = module.strategy.reconstruct(module.sampling_model, clips)
        return [("reconstruction", found.decoded, found.latents)]

    def _first_clips(self) -> tuple[Tensor, list[str]]:
        if self._clips is None:
            if self.batches is None:
                raise ValueError("an autoencoder demo needs data to reconstruct")
            pairs = ((a, m) for audio, metadata in self.batches for a, m in zip(audio, metadata, strict=True))
            taken = list(islice(pairs, self.max_demos))
            names = [f"{i + 1}. {m.get('prompt') or m.get('relpath') or 'clip'}" for i, (_, m) in enumerate(taken)]
            self._clips = torch.stack([audio for audio, _ in taken]), names
        return self._clips


def _likeness(original: Tensor, reconstruction: Tensor) -> dict[str, float]:
    """Signal-to-noise ratio in dB of a reconstruction (C, T), as far as it goes."""
    original = original[..., : reconstruction.shape[-1]]
    error = (original - reconstruction).square().sum()
    ratio = 10 * torch.log10(original.square().sum().clamp(min=1e-12) / error.clamp(min=1e-12))
    return {"snr_db": round(float(ratio), 2)}
