"""The strategy seam: a strategy says what loss is taken on a batch; the host (`training/module.py`) does everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.diffusion.known import Known
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.training.meter import Counted


@dataclass(frozen=True)
class LatentBatch:
    """One training batch in the model's own domain.

    latents: (B, C, T), as the denoiser sees them.
    mask: (B, T) bool, True where a frame holds real audio rather than padding.
    conditions: what the conditioner produced, keyed by condition id; None for a model without conditions.
    metadata: the B metadata dicts of the batch, not to be changed.
    known: what the model is told of the clips instead of making it; None: nothing.
    """

    latents: Tensor
    mask: Tensor
    conditions: Mapping[str, Condition] | None
    metadata: tuple[Mapping[str, Any], ...]
    known: Known | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class LossOutput:
    """A loss to minimise.

    loss: scalar with a graph.
    logs: detached scalars by name, averaged by the host between two log lines; a `Counted` by its number of examples.
    per_example: (B,) detached, each example's own loss, where the loss is a mean over examples.
    """

    loss: Tensor
    logs: Mapping[str, Tensor | Counted] = field(default_factory=dict)
    per_example: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """One optimizer step that a strategy asks for: minimise `output.loss` over the parameters of `player`."""

    player: str
    output: LossOutput


class TrainingStrategy(nn.Module):
    """What loss is taken. Implement `loss`, or `updates` if a batch makes several steps or players take turns.

    Submodules (a teacher, a discriminator) are registered here, so they move with the host and are in its checkpoints
    under `strategy.`; exports never contain them.
    """

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """The groups of parameters that are optimised, each by an optimizer of its own. Default: the trainable ones of `model`."""
        return {"diffusion": [p for p in model.parameters() if p.requires_grad]}

    def start(self, *, seed: int, rank: int) -> None:
        """Called on every rank before training, and before a checkpoint is loaded: seed what draws numbers of its own."""

    def loss(self, model: Any, batch: Any) -> LossOutput:
        """The loss of the single player of this strategy on one batch."""
        raise NotImplementedError(f"{type(self).__name__} implements neither loss nor updates")

    def updates(self, model: Any, batch: Any, step: int) -> Iterator[Update]:
        """Yield the updates of one batch; the host steps the optimizer between two yields.

        Args:
            model: the online model, in training mode.
            batch: what the host prepared, for diffusion a `LatentBatch`.
            step: train steps done so far.
        """
        (player,) = self.players(model)
        yield Update(player, self.loss(model, batch))

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Facts about the training that go into the header of its export, JSON-serialisable."""
        return {}
