"""Encoding and decoding of audio that is longer than a model's clips: in chunks, as many and as far apart as the network needs.

How far the network looks to each side is found by trial: a frame that is no number makes every sample that depends on it none.
Neighbours overlap by as much as that asks for, so that every sample is what one pass would have computed, up to rounding. A network
that looks everywhere (attention, recurrence, a sampler) has no such overlap; its chunks share `UNBOUNDED_OVERLAP`, and what they make
of a seam differs by what lies farther away.

B batch, C channels, T audio samples or latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stable_audio_tools.models.autoencoders.chunking import Chunks, map_chunks

LONG_S = 60.0  # chosen: clips of published models' length, up to 47 s, are one pass, as they are in training
CHUNK_S = 20.0  # chosen: the memory of a chunk and its surroundings is that of less than 30 s
TRIAL_FRAMES = 129  # chosen: convolutional autoencoders look 10 to 40 frames to each side
UNBOUNDED_OVERLAP = 64  # frames; chosen: twice upstream's

Map = Callable[[Tensor], Tensor]


def chunks_of(
    frames: int, frame_rate: float, reach: Callable[[], int | None], *, chunk_s: float | None = None, multiple: int = 1
) -> Chunks | None:
    """How to cut so many frames; None: one pass.

    Args:
        frame_rate: frames a second.
        reach: frames to each side that a frame depends on, None without a limit; asked where there is something to cut.
        chunk_s: seconds that each chunk adds; left out: `CHUNK_S`, of audio longer than `LONG_S`.
        multiple: what the sizes must be multiples of.

    Raises:
        ValueError: `chunk_s` is not above 0.
    """
    if chunk_s is not None and not chunk_s > 0:
        raise ValueError(f"chunk_s must be above 0, got {chunk_s:g}")
    if frames <= (LONG_S if chunk_s is None else chunk_s) * frame_rate:
        return None
    sides = reach()
    overlap = _rounded_up(UNBOUNDED_OVERLAP if sides is None else 2 * (sides + 1), multiple)
    size = overlap + _rounded_up((CHUNK_S if chunk_s is None else chunk_s) * frame_rate, multiple)
    return Chunks(size, overlap) if size < frames else None


def reach(function: Map, x: Tensor, *, frame_in: int, frame_out: int) -> int | None:
    """Frames to each side that a frame of `function`'s output depends on; None: more than a trial sees, or it hides what it depends on.

    Args:
        function: (B, C, n * frame_in) -> about (B, C', n * frame_out), without a random number.
        x: what it is to be applied to, for the shape alone.
    """
    frames = min(TRIAL_FRAMES, x.shape[-1] // frame_in)
    centre = frames // 2
    trial = torch.zeros_like(x[:1, :, : frames * frame_in])
    trial[..., centre * frame_in : (centre + 1) * frame_in] = math.nan
    touched = function(trial).isnan().flatten(0, 1).any(0).nonzero().flatten() // frame_out
    if not len(touched) or touched[0] == 0 or touched[-1] >= frames - 1:
        return None
    return max(centre - int(touched[0]), int(touched[-1]) - centre, 0)


def mapped(
    function: Map, x: Tensor, chunks: Chunks | None, *, frame_in: int, frame_out: int, callback: Callable[[int, int], None] | None = None
) -> Tensor:
    """`function` of x, whole or in chunks, of which neighbours go over into each other within the output's samples of one frame.

    Args:
        callback: called with the chunks done and their number.
    """
    total = 1 if chunks is None else len(chunks.starts(x.shape[-1] // frame_in))
    done = 0

    def counted(part: Tensor) -> Tensor:
        nonlocal done
        y = function(part)
        done += 1
        if callback is not None:
            callback(done, total)
        return y

    if chunks is None:
        return counted(x)
    sizes = {"chunk_size": chunks.size, "overlap": chunks.overlap, "fade": frame_out if frame_out > 1 else 0}
    return map_chunks(counted, x, frame_in=frame_in, frame_out=frame_out, **sizes)


def _rounded_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
