"""What an example is told of itself: which frames are known, and what stands in front of it, drawn anew at each step.

Known frames are clean, at noise level 0, and outside of the loss; the model learns to make the others so that they fit. Conditions
of one example add up. An example of which nothing would be left to make is trained as if it were told nothing.

B batch, C latent channels, T frames, R frames of a reference.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.configs.base import Family, StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.diffusion.known import Known, Reference
from stable_audio_tools.training.strategies.base import LatentBatch

Metadata = Sequence[Mapping[str, Any]]
Encode = Callable[[Tensor], Tensor]


class BaseCondition(StrictModel):
    """One way of telling an example about itself."""

    type: str
    probability: float = Field(1.0, gt=0, le=1, description="share of examples that are told")

    def problems(self, seconds: float) -> Iterator[Problem]:
        """What does not fit clips of this length; paths begin below the condition."""
        yield from ()

    @property
    def reads(self) -> str | None:
        """The key of metadata that it needs."""
        return None

    def example(self, clip: Tensor) -> Any:
        """What could stand under that key for a clip (C, T), of as many numbers as usual."""
        return None


class FrameCondition(BaseCondition):
    """Some frames of the example are known."""

    @abstractmethod
    def keep(self, real: Tensor, rate: float, metadata: Metadata) -> Tensor:
        """(B, T) bool, the frames that are known of examples that are told.

        Args:
            real: (B, T) bool, frames that are no padding.
            rate: latent frames a second.
        """


class EndCondition(FrameCondition):
    """A stretch at one end, of a length that may differ from example to example."""

    seconds: PositiveFloat | tuple[PositiveFloat, PositiveFloat] | None = Field(None, description="its length, or the least and the most")
    frames: PositiveInt | None = Field(None, description="its length in latent frames instead")

    @model_validator(mode="after")
    def _one_length(self) -> EndCondition:
        if (self.seconds is None) == (self.frames is None):
            raise ConfigError([Problem(("seconds",), "how long is it?", "give either seconds or frames")])
        if isinstance(self.seconds, tuple) and self.seconds[0] > self.seconds[1]:
            raise ConfigError([Problem(("seconds",), "the least comes first", "swap them", list(self.seconds))])
        return self

    def problems(self, seconds: float) -> Iterator[Problem]:
        longest = self.seconds[1] if isinstance(self.seconds, tuple) else self.seconds
        if longest is not None and longest >= seconds:
            yield Problem(("seconds",), f"the clip has {seconds:g} s, of which nothing would be left to make", "make it shorter", longest)

    def lengths(self, count: int, rate: float) -> Tensor:
        """(B, 1) frames, on the CPU."""
        if self.frames is not None:
            return torch.full((count, 1), self.frames)
        least, most = self.seconds if isinstance(self.seconds, tuple) else (self.seconds, self.seconds)
        assert least is not None and most is not None
        return ((least + (most - least) * torch.rand(count, 1)) * rate).round().long().clamp(min=1)


class PrefixCondition(EndCondition):
    """The beginning is known, and the model goes on with it."""

    type: Literal["prefix"]

    def keep(self, real: Tensor, rate: float, metadata: Metadata) -> Tensor:
        return torch.arange(real.shape[1], device=real.device) < self.lengths(len(real), rate).to(real.device)


class FirstFrameCondition(PrefixCondition):
    """The first latent frame is known: a prefix of one frame."""

    type: Literal["first_frame"]  # type: ignore[assignment]  # a name of its own
    frames: PositiveInt | None = Field(1, description="frames that are known")


class SuffixCondition(EndCondition):
    """The end is known, where the sound itself ends, and the model leads up to it."""

    type: Literal["suffix"]

    def keep(self, real: Tensor, rate: float, metadata: Metadata) -> Tensor:
        begins = real.sum(1, keepdim=True) - self.lengths(len(real), rate).to(real.device)
        return torch.arange(real.shape[1], device=real.device) >= begins


class RegionCondition(FrameCondition):
    """A stretch of the clip is known."""

    type: Literal["region"]
    start: float = Field(ge=0, description="seconds from the clip's beginning")
    end: PositiveFloat = Field(description="seconds from the clip's beginning")

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> RegionCondition:
        if self.end <= self.start:
            raise ConfigError([Problem(("end",), f"ends before its start at {self.start:g} s", "make it larger", self.end)])
        return self

    def problems(self, seconds: float) -> Iterator[Problem]:
        if self.start >= seconds:
            yield Problem(("start",), f"the clip ends at {seconds:g} s", "make it smaller", self.start)
        if self.start == 0 and self.end >= seconds:
            yield Problem(("end",), f"the clip has {seconds:g} s, of which nothing would be left to make", "make it smaller", self.end)

    def keep(self, real: Tensor, rate: float, metadata: Metadata) -> Tensor:
        place = torch.arange(real.shape[1], device=real.device)
        return ((place >= round(self.start * rate)) & (place < round(self.end * rate))).expand_as(real)


class MaskCondition(FrameCondition):
    """The data say which frames are known."""

    type: Literal["mask"]
    source: str = Field(min_length=1, description="key of metadata: numbers from the clip's beginning to its end, at any rate")
    polarity: Literal["keep", "generate"] = Field(description="what 1 means there: a known frame, or one to make")

    @property
    def reads(self) -> str | None:
        return self.source

    def example(self, clip: Tensor) -> Tensor:
        return torch.zeros(clip.shape[-1])

    def keep(self, real: Tensor, rate: float, metadata: Metadata) -> Tensor:
        return torch.stack([self._row(item, real) for item in metadata])

    def _row(self, item: Mapping[str, Any], real: Tensor) -> Tensor:
        """(T,); a frame is known if all of it is.

        Raises:
            ValueError: there is no mask, or one of fewer numbers than frames.
        """
        named = f"{item.get('path', 'an item')}: {self.source}"
        if self.source not in item:
            raise ValueError(f"{named}: missing, which the condition mask reads")
        given = torch.as_tensor(item[self.source], device=real.device).reshape(1, 1, -1) > 0
        if given.shape[-1] < real.shape[1]:
            raise ValueError(f"{named}: {given.shape[-1]} numbers for {real.shape[1]} frames; give one a frame or more")
        make = given if self.polarity == "generate" else ~given
        return F.adaptive_max_pool1d(make.float(), real.shape[1])[0, 0] == 0


class ReferenceCondition(BaseCondition):
    """Other audio stands in front of the example: clean, attended to, and not made."""

    type: Literal["reference"]
    source: str = Field(min_length=1, description="key of metadata: audio (channels, samples), or latents where the data are latents")
    time_scale: PositiveFloat = Field(1.0, description="frames of the clip that one frame of the reference stands for")

    @property
    def reads(self) -> str | None:
        return self.source

    def example(self, clip: Tensor) -> Tensor:
        """As long as the clip."""
        return torch.zeros_like(clip)

    def reference(self, told: Tensor, metadata: Metadata, latents: Tensor, encode: Encode, multiple: int) -> Reference:
        """The references of a batch, filled up to the longest.

        Args:
            told: (B,) bool, the examples that get theirs. latents: (B, C, T) of the examples.
            encode: (1, channels, samples) to (1, C, R). multiple: of frames.

        Raises:
            ValueError: an item has none, or one of other channels.
        """
        found = [self._latents(item, latents, encode) for item in metadata]
        longest = -(-max(part.shape[-1] for part in found) // multiple) * multiple
        place = torch.arange(longest, device=latents.device)
        sizes = torch.tensor([part.shape[-1] for part in found], device=latents.device)
        return Reference(
            torch.stack([F.pad(part, (0, longest - part.shape[-1])) for part in found]),
            place if self.time_scale == 1 else place * self.time_scale,
            (place < sizes[:, None]) & told[:, None],
        )

    def _latents(self, item: Mapping[str, Any], latents: Tensor, encode: Encode) -> Tensor:
        named = f"{item.get('path', 'an item')}: {self.source}"
        if self.source not in item:
            raise ValueError(f"{named}: missing, which the condition reference reads")
        given = torch.as_tensor(item[self.source]).to(latents)
        if given.ndim != 2 or not given.shape[-1]:
            raise ValueError(f"{named}: has shape {tuple(given.shape)}, expected (channels, length)")
        encoded = encode(given[None])[0]
        if encoded.shape[0] != latents.shape[1]:
            raise ValueError(f"{named}: gives {encoded.shape[0]} latent channels, and the clip has {latents.shape[1]}")
        return encoded


TOKEN_CONDITIONS = Family(
    "training condition", PrefixCondition, SuffixCondition, FirstFrameCondition, RegionCondition, MaskCondition, ReferenceCondition
)


@dataclass(frozen=True)
class ConditionPlan:
    """Draws what a batch is told, from torch's global generator of the CPU.

    rate: latent frames a second. multiple: frames that a network makes as one.
    """

    conditions: Sequence[BaseCondition]
    rate: float
    multiple: int = 1

    def draw(self, batch: LatentBatch, encode: Encode) -> Known:
        """What is known of a batch.

        Args:
            encode: audio of a reference (1, channels, samples) to latents (1, C, R).
        """
        told = [(torch.rand(len(batch.mask)) < condition.probability).to(batch.mask.device) for condition in self.conditions]
        return self._told(batch, encode, told)

    def draw_in_turn(self, batch: LatentBatch, encode: Encode) -> Known:
        """As `draw`, but each example is told by one of the frame conditions, in turn, and by all references."""
        place = torch.arange(len(batch.mask), device=batch.mask.device)
        frames = [number for number, condition in enumerate(self.conditions) if isinstance(condition, FrameCondition)]
        everyone = torch.ones_like(place, dtype=torch.bool)
        told = [place % len(frames) == frames.index(number) if number in frames else everyone for number in range(len(self.conditions))]
        return self._told(batch, encode, told)

    def _told(self, batch: LatentBatch, encode: Encode, everyone: Sequence[Tensor]) -> Known:
        """What is known where each condition tells the examples (B,) that it is to."""
        real, keep, references = batch.mask, torch.zeros_like(batch.mask), []
        for condition, told in zip(self.conditions, everyone, strict=True):
            if isinstance(condition, FrameCondition):
                keep = keep | (condition.keep(real, self.rate, batch.metadata) & told[:, None])
            elif isinstance(condition, ReferenceCondition):
                references.append(condition.reference(told, batch.metadata, batch.latents, encode, self.multiple))
        known = Known(batch.latents, keep & real, tuple(references)).whole(self.multiple)
        makes = (real & ~known.keep).any(dim=1, keepdim=True)
        return Known(batch.latents, known.keep & makes, known.references)
