"""Unconditional diffusion: a network that knows nothing but its input, its objective, and the pretransform around it."""

from __future__ import annotations

from torch import Tensor, nn

from stable_audio_tools.diffusion.objectives import Objective
from stable_audio_tools.diffusion.timesteps import DistributionShift

from .pretransforms import Pretransform


class UnconditionalDiffusion(nn.Module):
    """What generation and training ask of a diffusion model, without conditions.

    model: the network. pretransform: audio to latents and back, or None. objective: noise path and velocity.
    dist_shift: None, there is none. io_channels: channels of the network's input.
    sample_size: audio samples of a training clip. min_input_length: lengths in audio samples are multiples of it.
    """

    dist_shift: DistributionShift | None = None

    def __init__(
        self,
        model: nn.Module,
        pretransform: Pretransform | None = None,
        *,
        objective: Objective,
        io_channels: int,
        sample_rate: int,
        sample_size: int,
        min_input_length: int = 1,
    ):
        super().__init__()
        self.model = model
        self.pretransform = pretransform
        self.objective = objective
        self.io_channels, self.sample_rate = io_channels, sample_rate
        self.sample_size, self.min_input_length = sample_size, min_input_length

    @property
    def diffusion_objective(self) -> str:
        """The objective's name in configs."""
        return self.objective.name

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, C, T) at noisy audio or latents x (B, C, T) and noise levels t (B,)."""
        return self.model(x, t)
