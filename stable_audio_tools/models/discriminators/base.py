"""The discriminator seam: what its two players minimise, whatever it looks at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel

AdversarialLoss = Literal["hinge", "rpgan"]
Verdict = tuple[list[Tensor], list[list[Tensor]]]
SMALLEST_SCALE = 1e-3  # of a layer's activations, where feature distances are relative to it


class AdversarialWeights(StrictModel):
    """How much the discriminator's opinion counts in the autoencoder's loss."""

    adversarial: float = Field(ge=0, description="weight of the loss for being recognised as a reconstruction")
    feature_matching: float = Field(ge=0, description="weight of the distance between the discriminator's activations")


class BaseDiscriminatorConfig(StrictModel):
    """What every discriminator's block in `loss_configs` says."""

    weights: AdversarialWeights

    @property
    @abstractmethod
    def min_samples(self) -> int:
        """The shortest audio, in samples, that this discriminator can judge."""

    @abstractmethod
    def build(self, channels: int) -> Discriminator:
        """The discriminator of audio with `channels` channels."""


class Discriminator(nn.Module, ABC):
    """Tells reconstructions from recordings. A kind of discriminator implements `forward`.

    Args:
        loss_type: `hinge` (arXiv:1705.02894) scores each sound by itself; `rpgan` compares the scores of a recording and its own
            reconstruction (relativistic pairing, arXiv:1807.00734).
        normalize_losses: feature distances are relative to the size of the recording's activations, so that no layer dominates.
    """

    def __init__(self, *, loss_type: AdversarialLoss = "hinge", normalize_losses: bool = False):
        super().__init__()
        self.loss_type, self.normalize_losses = loss_type, normalize_losses

    @abstractmethod
    def forward(self, audio: Tensor) -> Verdict:
        """Audio (B, C, T) to a tensor of scores for each of its heads, high for recordings, and each head's activations by layer."""

    def discriminator_loss(self, reals: Tensor, fakes: Tensor) -> Tensor:
        """The discriminator's own loss (scalar), mean over its heads; no gradient reaches `fakes`. Both are (B, C, T)."""
        scores, _ = self(torch.cat([reals, fakes.detach()]))
        pairs = [score.float().tensor_split([len(reals)]) for score in scores]
        return _mean([_DISCRIMINATOR_LOSSES[self.loss_type](real, fake) for real, fake in pairs])

    def generator_loss(self, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (scalars) of what made `fakes`: for being recognised, and for the distance between the activations.

        `reals` are run without a graph. The discriminator's weights get a gradient unless the caller freezes them.
        """
        with torch.no_grad():
            real_scores, real_features = self(reals)
        fake_scores, fake_features = self(fakes)
        loss = _GENERATOR_LOSSES[self.loss_type]
        adversarial = _mean([loss(real.float(), fake.float()) for real, fake in zip(real_scores, fake_scores, strict=True)])
        return adversarial, _mean([self._distance(*layers) for layers in zip(real_features, fake_features, strict=True)])

    def _distance(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """Mean over the layers of one head of the mean absolute difference."""
        distances = []
        for target, given in zip(real, fake, strict=True):
            distance = (target.float() - given.float()).abs().mean()
            distances.append(distance / (target.float().abs().mean() + SMALLEST_SCALE) if self.normalize_losses else distance)
        return _mean(distances)


_DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    "rpgan": lambda real, fake: F.softplus(fake - real).mean(),
}
_GENERATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": lambda real, fake: -fake.mean(),
    "rpgan": lambda real, fake: F.softplus(real - fake).mean(),
}


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
