"""Inpainting: which frames a model is given, which it has to make, and the two conditions that tell it.

Masks are those of the published models: 1 where a frame is given, 0 where it is to be made. The model sees the mask and the
latents times the mask, as channels beside its noisy input.

B batch, C latent channels, T latent frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem

from .conditioners import INPAINT_IDS, Condition

SPAN_COUNTS = (4.0, 2.0, 1.0, 1.0)  # how often random_spans has 1, 2, 3 and 4 spans, as in Stable Audio 3
SPAN_SHARE = (0.2, 1.0)  # of the real frames that they cover together, as in Stable Audio 3
SUM_TOLERANCE = 1e-4  # probabilities are written with few digits


class InpaintMasks(StrictModel):
    """Which frames a training example has to make. Segments, spans and suffixes lie within its real frames.

    random_segments: 1 to `max_mask_segments` segments, which may overlap; n of them are each up to 1/n of the clip.
    full: all frames, padding too, as when a clip is made from nothing.
    causal: all from some frame on.
    random_spans: 1 to 4 spans that do not overlap and cover a fifth of the clip or more.
    """

    max_mask_segments: PositiveInt = Field(10, description="most segments of the kind random_segments")
    mask_type_probabilities: tuple[float, ...] = Field(
        (0.1, 0.8, 0.1), description="shares of random_segments, full, causal and, where a fourth is given, random_spans; together 1"
    )

    @model_validator(mode="after")
    def _shares_of_one(self) -> Self:
        shares, path = self.mask_type_probabilities, ("mask_type_probabilities",)
        if len(shares) not in (len(KINDS) - 1, len(KINDS)):
            fix = f"give one for each of {', '.join([*KINDS][:3])}, and a fourth for random_spans if wanted"
            raise ConfigError([Problem(path, f"3 or 4 probabilities are expected, got {len(shares)}", fix)])
        if negative := [Problem((*path, i), "a probability is at least 0", "use 0", share) for i, share in enumerate(shares) if share < 0]:
            raise ConfigError(negative)
        if abs(sum(shares) - 1) > SUM_TOLERANCE:
            raise ConfigError([Problem(path, f"the probabilities add up to {sum(shares):g} and not to 1", "change one of them")])
        return self

    @property
    def gives(self) -> bool:
        """Whether there is a kind that gives some frames."""
        return any(share > 0 for name, share in zip(KINDS, self.mask_type_probabilities, strict=False) if name != "full")

    def draw(self, real: Tensor) -> Tensor:
        """A mask for each item, from torch's global generator of the CPU.

        Args:
            real: (B, T) bool, which frames are no padding.

        Returns:
            (B, T) bool on the device of `real`, True where a frame is given.
        """
        shares = torch.tensor(self.mask_type_probabilities)
        kind = torch.multinomial(shares, len(real), replacement=True).to(real.device)
        made = torch.zeros_like(real)
        for index, (share, draw) in enumerate(zip(self.mask_type_probabilities, KINDS.values(), strict=False)):
            if share > 0:
                made = torch.where(kind[:, None] == index, draw(real, self.max_mask_segments), made)
        return ~made

    def partial(self) -> Self:
        """The same without the kind that gives nothing; itself where there is no other."""
        segments, _, *rest = self.mask_type_probabilities
        others = segments + sum(rest)
        if others == 0:
            return self
        return self.model_copy(update={"mask_type_probabilities": (segments / others, 0.0, *(share / others for share in rest))})


def inpaint_conditions(latents: Tensor, mask: Tensor) -> dict[str, Condition]:
    """What tells a model about the frames that are given.

    Args:
        latents: (B, C, T) of the whole clip.
        mask: (B, T), 1 where a frame is given.
    """
    mask = mask[:, None].to(latents)
    return dict(zip(INPAINT_IDS, (Condition(mask, None), Condition(latents * mask, None)), strict=True))


def _random_segments(real: Tensor, most: int) -> Tensor:
    length = _lengths(real)
    count = 1 + _integers(torch.full_like(length, most), 1)
    size = 1 + _integers((length // count).clamp(min=1), most)
    start = _integers(length - size + 1, most)
    used = torch.arange(most, device=real.device) < count
    return _covered(start, torch.where(used, start + size, start), real)


def _full(real: Tensor, most: int) -> Tensor:
    return torch.ones_like(real)


def _causal(real: Tensor, most: int) -> Tensor:
    length = _lengths(real)
    return _covered(_integers(length + 1, 1), length, real)


def _random_spans(real: Tensor, most: int) -> Tensor:
    """The frames to make and the others, each cut at random into as many parts as there are spans, and laid out in turn."""
    length = _lengths(real)
    low, high = SPAN_SHARE
    share = low + (high - low) * torch.rand(len(real), 1).to(real.device)
    made = (length * share).round().long().clamp(min=1).minimum(length)
    count = 1 + torch.multinomial(torch.tensor(SPAN_COUNTS), len(real), replacement=True).to(real.device)[:, None]
    spans = _cuts(made, count, len(SPAN_COUNTS))
    gaps = _cuts(length - made, count + 1, len(SPAN_COUNTS) + 1)[:, :-1]
    return _covered(gaps + F.pad(spans, (1, 0))[:, :-1], gaps + spans, real)


def _cuts(total: Tensor, parts: Tensor, most: int) -> Tensor:
    """(B, most) ends of `parts` (B, 1) random parts of `total` (B, 1); parts beyond those are empty."""
    sizes = torch.empty(len(total), most).exponential_().to(total.device)
    sizes = sizes * (torch.arange(most, device=total.device) < parts)
    return (total * sizes.cumsum(1) / sizes.sum(1, keepdim=True)).round().long()


KINDS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "random_segments": _random_segments,
    "full": _full,
    "causal": _causal,
    "random_spans": _random_spans,
}
"""By name, in the order of `mask_type_probabilities`: real frames (B, T) and the most segments, to the frames to make (B, T)."""


def _integers(limit: Tensor, count: int) -> Tensor:
    """(B, count) integers from 0 to below `limit` (B, 1 or count); drawn on the CPU, so the same on every device."""
    return (torch.rand(len(limit), count).to(limit.device) * limit).long().minimum(limit - 1)


def _covered(start: Tensor, end: Tensor, real: Tensor) -> Tensor:
    """(B, T) the real frames from a start (B, K) to before its end (B, K)."""
    position = torch.arange(real.shape[1], device=real.device)
    return ((position >= start[..., None]) & (position < end[..., None])).any(1) & real


def _lengths(real: Tensor) -> Tensor:
    """(B, 1) number of real frames, which come first."""
    return real.sum(1, keepdim=True)
