"""Plain denoising training: pretraining, and supervised fine-tuning, which is the same loss on chosen data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.training.strategies.base import LatentBatch, LossOutput, TrainingStrategy

if TYPE_CHECKING:
    from stable_audio_tools.training.noising import Noising


class SupervisedConfig(StrictModel):
    """Minimise the squared error of the predicted velocity."""

    name: Literal["supervised"] = "supervised"

    def build(self, noising: Noising) -> Supervised:
        return Supervised(noising)


class Supervised(TrainingStrategy):
    """Mean squared error between the predicted and the true velocity at random noise levels."""

    def __init__(self, noising: Noising):
        super().__init__()
        self.noising = noising

    def start(self, *, seed: int, rank: int) -> None:
        self.noising.start(seed=seed, rank=rank)

    def loss(self, model: Any, batch: LatentBatch) -> LossOutput:
        noisy = self.noising.draw(model, batch)
        return self.noising.denoising_loss(self.noising.velocity(model, noisy, batch), noisy, batch)
