"""Demos of a diffusion autoencoder: the same clips each time, original beside reconstruction, from the same noise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.training.demos.autoencoder import AutoencoderDemoCallback
from stable_audio_tools.training.demos.config import DiffusionAutoencoderDemoConfig


class DiffusionAutoencoderDemoCallback(AutoencoderDemoCallback):
    """Encodes the first `max_demos` clips of the data and samples them back by `decode`."""

    def __init__(self, config: DiffusionAutoencoderDemoConfig, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.demo_steps, self.seed = config.demo_steps, config.seed

    def reconstruct(self, module: Any, clips: Tensor) -> Tensor:
        model = module.sampling_model
        generators = [generator_for(self.seed, index) for index in range(len(clips))]
        return model.decode(model.encode(clips, sample=False), self.demo_steps, generator=generators)
