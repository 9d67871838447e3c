"""Codebook patterns: in which order a language model predicts the K tokens of each of T frames. arXiv:2306.05284, section 2.2.

A layout lists, for each step of the sequence, the (frame, codebook) pairs that the step predicts at once. Step 0 predicts nothing: it
is the start. Each token has one step, and a codebook's tokens are in the order of their frames, so a pattern is a table of
steps (K, T), and a sequence is made and taken apart by one scatter and one gather. What is left holds a special token.

B batch, K codebooks, T frames, S steps, V vocabulary. Tokens are (B, K, T), sequences (B, K, S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import Problem

PatternName = Literal["delay", "parallel", "unroll", "musiclm", "coarse_first"]
Step = list[tuple[int, int]]
"""The (frame, codebook) pairs of one step, at most one of each codebook. Frames from T on stand for nothing."""


class PatternOptions(StrictModel):
    """Settings of a pattern; which of them it takes is in `PATTERNS`."""

    delays: tuple[NonNegativeInt, ...] | None = Field(
        default=None,
        description="steps by which each codebook lags, in ascending order. delay: default 0, 1, 2, ...; unroll: frames, default 0; "
        "coarse_first: of all codebooks but the first, default 0",
    )
    flatten_first: NonNegativeInt = Field(default=0, description="delay: frames at the start with a step for each codebook")
    empty_initial: NonNegativeInt = Field(default=0, description="delay, parallel: steps that predict nothing, after the start")
    flattening: tuple[NonNegativeInt, ...] | None = Field(
        default=None,
        description="unroll: place of each codebook within its frame, in ascending order; those of one place share a step. "
        "Default 0, 1, 2, ...",
    )
    group_by: PositiveInt = Field(default=2, description="musiclm: codebooks that are finished together before the next ones begin")


def delay_layout(options: PatternOptions, codebooks: int, frames: int) -> list[Step]:
    """Codebook k lags by delays[k] steps; the first frames may be flattened."""
    delays, flat = options.delays or range(codebooks), options.flatten_first
    steps: list[Step] = [[] for _ in range(1 + options.empty_initial)]
    steps += [[(t, k)] for t in range(min(frames, flat)) for k in range(codebooks)]
    last = frames + max(delays) if frames > flat else flat
    return steps + [[(t - lag, k) for k, lag in enumerate(delays) if t - lag >= flat] for t in range(flat, last)]


def parallel_layout(options: PatternOptions, codebooks: int, frames: int) -> list[Step]:
    """All codebooks of a frame at once."""
    return [[] for _ in range(1 + options.empty_initial)] + [[(t, k) for k in range(codebooks)] for t in range(frames)]


def unroll_layout(options: PatternOptions, codebooks: int, frames: int) -> list[Step]:
    """Each frame takes a step for each place of `flattening`; places may lag by whole frames, and the most delayed come first."""
    flattening, delays = options.flattening or range(codebooks), options.delays or (0,) * codebooks
    places = {place: [k for k in range(codebooks) if flattening[k] == place] for place in range(max(flattening) + 1)}
    last = frames + max(delays)
    timed: list[tuple[int, Step]] = []
    for t in range(last):
        for members in places.values():
            when = t + delays[members[0]] if members else t
            if when < last:
                timed.append((when, [(t, k) for k in members]))
    return [[], *(step for _, step in sorted(timed))]


def musiclm_layout(options: PatternOptions, codebooks: int, frames: int) -> list[Step]:
    """Groups of codebooks one after the other, each flattened over all frames. After arXiv:2301.11325, section 3.3."""
    starts = range(0, codebooks, options.group_by)
    groups = [range(start, min(start + options.group_by, codebooks)) for start in starts]
    return [[], *([(t, k)] for group in groups for t in range(frames) for k in group)]


def coarse_first_layout(options: PatternOptions, codebooks: int, frames: int) -> list[Step]:
    """All of the first codebook, then the others in parallel or with delays.

    The others see the whole clip and know its length by where they begin: clips to generate are as long as those trained on.
    """
    delays = options.delays or (0,) * (codebooks - 1)
    steps: list[Step] = [[], *([(t, 0)] for t in range(frames))]
    return steps + [[(t - lag, k) for k, lag in enumerate(delays, 1) if t >= lag] for t in range(frames + max(delays, default=0)) if delays]


class Pattern(NamedTuple):
    """How a pattern lays out its steps, and the options it takes."""

    layout: Callable[[PatternOptions, int, int], list[Step]]
    options: tuple[str, ...]


PATTERNS: dict[PatternName, Pattern] = {
    "delay": Pattern(delay_layout, ("delays", "flatten_first", "empty_initial")),
    "parallel": Pattern(parallel_layout, ("empty_initial",)),
    "unroll": Pattern(unroll_layout, ("flattening", "delays")),
    "musiclm": Pattern(musiclm_layout, ("group_by",)),
    "coarse_first": Pattern(coarse_first_layout, ("delays",)),
}


def option_problems(name: PatternName, options: PatternOptions, codebooks: int) -> Iterator[Problem]:
    """What is wrong with these options for this pattern over this many codebooks; paths begin at the options."""
    taken = PATTERNS[name].options
    for key in sorted(options.model_fields_set - {*taken}):
        yield Problem((key,), f"has no effect on the {name} pattern, which takes {' and '.join(taken)}", "remove it")
    if name == "coarse_first" and options.delays is not None:
        yield from _list_problems("delays", options.delays, codebooks - 1, f"all but the first of the {codebooks} codebooks")
    elif "delays" in taken and options.delays is not None:
        yield from _list_problems("delays", options.delays, codebooks, f"the {codebooks} codebooks")
    if "flattening" in taken and options.flattening is not None:
        yield from _list_problems("flattening", options.flattening, codebooks, f"the {codebooks} codebooks")
        if options.delays is not None and len(options.delays) == len(options.flattening) == codebooks:
            lags = dict(zip(options.flattening, options.delays, strict=True))
            if any(lags[place] != lag for place, lag in zip(options.flattening, options.delays, strict=True)):
                yield Problem(("delays",), "codebooks that share a place in flattening must share a delay", "give them one delay")


def _list_problems(key: str, values: tuple[int, ...], length: int, what: str) -> Iterator[Problem]:
    if len(values) != length:
        yield Problem((key,), f"{len(values)} numbers, but they are for {what}", f"give {length}")
    if list(values) != sorted(values):
        yield Problem((key,), f"{list(values)} is not in ascending order", f"sorted: {sorted(values)}")


@dataclass(frozen=True, eq=False)
class PatternTable:
    """A pattern over T frames.

    step_of: the step of each token, (K, T) int64.
    num_steps: S of the whole sequence, which generation makes.
    trained_steps: S of the sequence that training sees: as many steps are cut off as the last of the layout lags behind the last frame,
        as with the models of arXiv:2306.05284. Tokens of later steps are not trained.
    """

    step_of: np.ndarray
    num_steps: int
    trained_steps: int

    def first_step(self, frame: int) -> int:
        """The first step that predicts a token of `frame`."""
        return int(self.step_of[:, frame].min())

    def build(self, codes: Tensor, special: int, *, trained: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens (B, K, T) as a sequence (B, K, S), `special` where it has none, and the bool mask (K, S) of where it has some."""
        codebooks, steps = len(self.step_of), self.trained_steps if trained else self.num_steps
        table = self._table(codes.device)[None].expand(len(codes), -1, -1)
        # Tokens behind the last step are scattered to one more, which is cut off.
        sequence = codes.new_full((len(codes), codebooks, steps + 1), special).scatter(2, table.clamp(max=steps), codes)
        holds = torch.zeros(codebooks, steps + 1, dtype=torch.bool, device=codes.device).scatter(1, table[0].clamp(max=steps), True)
        return sequence[..., :steps], holds[..., :steps]

    def revert(self, sequence: Tensor, special: int) -> tuple[Tensor, Tensor]:
        """A sequence (B, K, S), whole or cut, as tokens (B, K, T), `special` where it holds none, and the bool mask (K, T) of the rest."""
        table, steps = self._table(sequence.device), sequence.shape[2]
        there = table < steps
        codes = sequence.gather(2, table.clamp(max=steps - 1)[None].expand(len(sequence), -1, -1))
        return codes.masked_fill(~there, special), there

    def revert_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What each step says about the next (B, K, S, V) as what is said about each token (B, K, T, V); NaN where nothing is.

        The second result is the bool mask (K, T) of where something is.
        """
        table, steps = self._table(logits.device), logits.shape[2]
        there = table < steps
        codebook = torch.arange(len(table), device=logits.device)[:, None]
        return logits[:, codebook, table.clamp(max=steps) - 1].masked_fill(~there[None, :, :, None], float("nan")), there

    def _table(self, device: torch.device) -> Tensor:
        return torch.from_numpy(self.step_of).to(device)


@lru_cache(maxsize=64)
def pattern_table(name: PatternName, options: PatternOptions, codebooks: int, frames: int) -> PatternTable:
    """The table of a pattern; it holds no tensors, so that what one device or gradient mode computed never reaches another.

    Raises:
        ValueError: there are no frames.
    """
    if frames < 1:
        raise ValueError(f"a pattern needs at least one frame, got {frames}")
    layout = PATTERNS[name].layout(options, codebooks, frames)
    step_of = np.zeros((codebooks, frames), dtype=np.int64)
    for index, step in enumerate(layout):
        for frame, codebook in step:
            if frame < frames:
                step_of[codebook, frame] = index
    beyond = max(frame for step in layout for frame, _ in step) + 1 - frames
    return PatternTable(step_of, len(layout), len(layout) - beyond)
