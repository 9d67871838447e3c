"""Demos of a diffusion autoencoder: the same clips each time, original beside reconstruction, from the same noise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.training.demos.autoencoder import AutoencoderDemoCallback
from stable_audio_tools.training.demos.config import DiffusionAutoencoderDemoConfig


class DiffusionAutoencoderDemoCallback(AutoencoderDemoCallback):
    """Encodes the first `max_demos` clips of the data and samples them back by `decode`.

    What a pretransform alone gives back is shown too: no reconstruction can be better.
    """

    def __init__(self, config: DiffusionAutoencoderDemoConfig, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.demo_steps, self.seed = config.demo_steps, config.seed

    def reconstructions(self, module: Any, clips: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        model = module.sampling_model
        generators = [generator_for(self.seed, index) for index in range(len(clips))]
        latents = model.encode(clips, sample=False)
        found = [("reconstruction", model.decode(latents, self.demo_steps, generator=generators), latents)]
        if model.pretransform is not None:
            first_stage = model.pretransform.encode(clips)
            found.append(("pretransform alone", model.pretransform.decode(first_stage), first_stage))
        return found
