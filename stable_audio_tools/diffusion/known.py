"""What a model is told of a clip instead of making it: frames of the clip itself, and other audio in front of it.

Known frames are clean and at noise level 0 (the timesteps per token of arXiv:2501.00103); the model makes the others.
References stand in front of the sequence, on a clock of their own choice, and the model attends to them as to any frame
(in-context conditions, arXiv:2410.23775). One object serves training, demos and generation.

B batch, C latent channels, T frames of the clip, R of a reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """Audio that the clip is to be like in some way that training teaches.

    latents: (B, C, R). positions: (R,) where its frames stand, in frames of the clip. real: (B, R) bool, False where an item has none.
    """

    latents: Tensor
    positions: Tensor
    real: Tensor


@dataclass(frozen=True)
class Told:
    """What training has taught a model to make use of.

    frames: known frames of the clip. references: for each reference that it was given, the frames of the clip that one of its stands for.
    """

    frames: bool = False
    references: tuple[float, ...] = ()


class Sequence(NamedTuple):
    """What a network sees of noisy latents and of what is known.

    x: (B, C, S). known: (B, S) bool, frames at noise level 0. mask: (B, S) bool, real frames; None: all are.
    positions: (S,); None: 0, 1, ...
    """

    x: Tensor
    known: Tensor
    mask: Tensor | None
    positions: Tensor | None


@dataclass(frozen=True)
class Known:
    """What is known of B clips.

    latents: (B, C, T), of which the kept frames matter. keep: (B, T) bool, True where a frame is known.
    """

    latents: Tensor
    keep: Tensor
    references: tuple[Reference, ...] = ()

    @property
    def in_front(self) -> int:
        """Frames of references."""
        return sum(reference.latents.shape[-1] for reference in self.references)

    def told(self, x: Tensor) -> Tensor:
        """x (B, C, T) with the known frames in their place."""
        return torch.where(self.keep[:, None], self.latents.to(x), x)

    def whole(self, frames: int) -> Known:
        """The same for a network that makes `frames` at a time: where it makes one of them, none is known."""
        if frames == 1:
            return self
        groups = self.keep.unflatten(-1, (-1, frames)).all(dim=-1)
        return replace(self, keep=groups.repeat_interleave(frames, dim=-1))

    def sequence(self, x: Tensor, mask: Tensor | None) -> Sequence:
        """What the network is to see.

        Args:
            x: (B, C, T) noisy latents. mask: (B, T) bool, real frames; None: all are.
        """
        x = self.told(x)
        if not self.references:
            return Sequence(x, self.keep, mask, None)
        own = torch.arange(x.shape[-1], device=x.device)
        latents, real = [part.latents.to(x) for part in self.references], [part.real for part in self.references]
        positions = [part.positions.to(x.device) for part in self.references]
        return Sequence(
            torch.cat((*latents, x), dim=-1),
            torch.cat((*(torch.ones_like(part) for part in real), self.keep), dim=-1),
            torch.cat((*real, torch.ones_like(self.keep) if mask is None else mask), dim=-1),
            torch.cat((*positions, own)),
        )

    def repeated(self, times: int) -> Known:
        """The same clips `times` times, one set after another."""
        references = tuple(
            replace(reference, latents=_again(reference.latents, times), real=_again(reference.real, times))
            for reference in self.references
        )
        return Known(_again(self.latents, times), _again(self.keep, times), references)


def _again(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *(1,) * (x.ndim - 1))
