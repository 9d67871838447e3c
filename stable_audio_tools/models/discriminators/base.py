"""The discriminator seam: what its two players minimise, whatever it looks at.

Scores are high for recordings ("real") and low for reconstructions ("fake").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.exact import at_least_single

Layers = list[Tensor]
Verdict = tuple[list[Tensor], list[Layers]]


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
        """The shortest audio, in samples, from which on it can judge any length."""

    def audio_problems(self, sample_rate: int, channels: int) -> list[Problem]:
        """What does not fit audio at `sample_rate` Hz with `channels` channels; paths from this block."""
        return []

    @abstractmethod
    def build(self, sample_rate: int, channels: int) -> Discriminator:
        """The discriminator of audio at `sample_rate` Hz with `channels` channels."""


def channels_problem(key: str, given: int | None, channels: int) -> list[Problem]:
    """Whether the number of channels that a config may repeat under `config.<key>` is that of the audio."""
    if given in (None, channels):
        return []
    message = f"{given} channel{'s' * (given != 1)}, but the model's audio has {channels}"
    return [Problem(("config", key), message, f"remove the key, or give {channels}", given)]


class Discriminator(nn.Module, ABC):
    """Tells reconstructions from recordings."""

    @abstractmethod
    def discriminator_loss(self, reals: Tensor, fakes: Tensor) -> Tensor:
        """The discriminator's own loss (scalar); no gradient reaches `fakes`. Both are (B, C, T)."""

    @abstractmethod
    def generator_loss(self, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (scalars) of what made `fakes`: for being recognised, and for the distance between the activations.

        `reals` are run without a graph. The discriminator's weights get a gradient unless the caller freezes them.
        """


class HeadedDiscriminator(Discriminator):
    """Several heads, each with scores of its own. A kind of discriminator implements `forward`.

    Args:
        game: what scores cost each player.
        relative_to: feature distances are relative to the mean size of the recording's activations in that layer plus this, so that no
            layer dominates; None: they are absolute.
    """

    def __init__(self, game: Game, *, relative_to: float | None = None):
        super().__init__()
        self.game, self.relative_to = game, relative_to

    @abstractmethod
    def forward(self, audio: Tensor) -> Verdict:
        """Audio (B, C, T) to a tensor of scores for each of its heads, items first, and each head's activations by layer."""

    def discriminator_loss(self, reals: Tensor, fakes: Tensor) -> Tensor:
        scores, _ = self(torch.cat([reals, fakes.detach()]))
        return _mean([self.game.discriminator(*at_least_single(score).chunk(2)) for score in scores])

    def generator_loss(self, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            real_scores, real_features = self(reals)
        fake_scores, fake_features = self(fakes)
        pairs = zip(real_scores, fake_scores, strict=True)
        adversarial = _mean([self.game.generator(at_least_single(real), at_least_single(fake)) for real, fake in pairs])
        return adversarial, _mean([self.feature_distance(*layers) for layers in zip(real_features, fake_features, strict=True)])

    def feature_distance(self, real: Layers, fake: Layers) -> Tensor:
        """Of one head: the mean over its layers of the mean absolute difference."""
        return _mean([layer_distance(*pair, self.relative_to) for pair in zip(real, fake, strict=True)])


def layer_distance(real: Tensor, fake: Tensor, relative_to: float | None = None) -> Tensor:
    """Mean absolute difference of one layer's activations, see `HeadedDiscriminator`."""
    real, fake = at_least_single(real), at_least_single(fake)
    distance = (real - fake).abs().mean()
    return distance if relative_to is None else distance / (real.abs().mean() + relative_to)


@dataclass(frozen=True)
class Game:
    """What scores (any shape, alike) of recordings and reconstructions cost, as scalars: loss(real, fake) for each player."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _negative(real: Tensor, fake: Tensor) -> Tensor:
    return -fake.mean()


def _fake_above_real(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(fake - real).mean()


def _real_above_fake(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(real - fake).mean()


def _squares(real: Tensor, fake: Tensor) -> Tensor:
    return (1 - real).square().mean() + fake.square().mean()


def _square_to_one(real: Tensor, fake: Tensor) -> Tensor:
    return (1 - fake).square().mean()


def _unit_hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(fake).mean()


def _below_one(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - fake).mean()


HINGE = Game(_hinge, _negative)  # arXiv:1705.02894
RELATIVISTIC = Game(_fake_above_real, _real_above_fake)  # a recording against its own reconstruction, arXiv:1807.00734
LEAST_SQUARES = Game(_squares, _square_to_one)  # arXiv:1611.04076
UNIT_HINGE = Game(_unit_hinge, _below_one)  # scores between 0 and 1, upstream's alternative to least squares

LossType = Literal["hinge", "lsgan", "rpgan"]
LOSS_TYPE = "what scores cost: hinge, lsgan (squared distances from 0 and 1), or rpgan (each recording against its own reconstruction)"
GAMES: dict[str, Game] = {"hinge": HINGE, "lsgan": LEAST_SQUARES, "rpgan": RELATIVISTIC}


def use_hinge_alone(use_hinge: bool, loss_type: LossType | None) -> None:
    """Refuse two keys that say what scores cost.

    Raises:
        ConfigError: both are given.
    """
    if use_hinge and loss_type is not None:
        raise ConfigError([Problem(("use_hinge",), "loss_type says already what scores cost", "keep one of the two", on_key=True)])


def in_precision_of(layer: nn.Module, x: Tensor) -> Tensor:
    """`x` in the dtype of the weights of `layer`: transforms are in at least float32, and networks may be in half precision."""
    return x.to(next(layer.parameters()).dtype)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
