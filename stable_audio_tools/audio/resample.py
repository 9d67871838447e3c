"""Alias-free change of sample rate, made so that a part of a file resamples to exactly the part of the whole.

soxr (linear phase, finite impulse response) works through FFT blocks, so its last bits depend on where the signal starts:
resampling from another start differs by up to 5e-7. Here the signal is cut on a fixed grid, each cell is resampled alone
with its surroundings, and the surroundings are dropped. A sample then depends on its cell only, whoever asks for it, and
the result is that of one soxr call over the whole to within 2e-6 of full scale (1e-5 for rates whose ratio needs large
numbers, 44056 to 44100 Hz say, where it is soxr's clock that drifts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    Frames = np.ndarray[tuple[int, int], np.dtype[np.float32]]  # (T, C)

QUALITY = "HQ"  # 20 bit: images and aliases below -120 dB; VHQ costs 1.7 times as much and 16-bit sources cannot show it
CELL = 16384  # output frames, chosen: short enough to waste little around a 1.5 s crop
SURROUNDINGS = 256  # frames of the lower rate; measured: what lies further than 110 of them away changes nothing above 1e-6


class Grid(NamedTuple):
    """How one pair of rates is cut up; all in frames.

    source, target: a cell at the two rates, a whole number of periods, so that every cell starts on the same phase.
    lead_in, lead_out: the surroundings on each side of a cell, at the two rates.
    """

    source: int
    target: int
    lead_in: int
    lead_out: int


def grid(source_rate: int, target_rate: int) -> Grid:
    divisor = math.gcd(source_rate, target_rate)
    period_in, period_out = source_rate // divisor, target_rate // divisor
    periods = math.ceil(CELL / period_out)
    lead = math.ceil(SURROUNDINGS * max(1.0, source_rate / target_rate) / period_in)
    return Grid(periods * period_in, periods * period_out, lead * period_in, lead * period_out)


def resampled_length(frames: int, source_rate: int, target_rate: int) -> int:
    """How many frames at the target rate `frames` at the source rate become: the nearest number, as in soxr."""
    return (2 * frames * target_rate + source_rate) // (2 * source_rate)


def resample(audio: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """(C, T) at `source_rate` Hz to (C, resampled_length(T)) at `target_rate` Hz, float32 on the CPU."""
    if source_rate == target_rate:
        return audio
    frames = audio.float().cpu().T.contiguous().numpy()
    length = resampled_length(len(frames), source_rate, target_rate)
    resampled = resample_span(lambda start, stop: frames[start:stop], len(frames), source_rate, target_rate, 0, length)
    return torch.from_numpy(resampled).T.contiguous()


def resample_span(
    read: Callable[[int, int], Frames], source_frames: int, source_rate: int, target_rate: int, start: int, stop: int
) -> Frames:
    """Frames [start, stop) of the resampled signal, reading only the source frames that they need.

    Args:
        read: gives the source frames [a, b) as (b - a, C) float32; asked once, for 0 <= a < b <= source_frames.
        source_frames: length of the source; silence surrounds it.
        start, stop: at the target rate, 0 <= start < stop <= resampled_length(source_frames).

    Returns:
        (stop - start, C) float32, equal bit by bit to that part of the whole.
    """
    import numpy as np

    cells = grid(source_rate, target_rate)
    first, last = start // cells.target, (stop - 1) // cells.target
    spans = [_surrounded(cells, index, source_frames) for index in range(first, last + 1)]
    begin, end = spans[0][0], spans[-1][1]
    frames = read(begin, end)
    parts = []
    for index, (a, b) in enumerate(spans, first):
        lead = cells.lead_out if index else 0
        parts.append(_soxr(frames[a - begin : b - begin], source_rate, target_rate)[lead : lead + cells.target])
    skipped = start - first * cells.target
    return np.concatenate(parts)[skipped : skipped + stop - start]


def _surrounded(cells: Grid, index: int, source_frames: int) -> tuple[int, int]:
    """The source frames of a cell and its surroundings; nothing surrounds the signal itself, as for soxr over the whole."""
    start = index * cells.source
    return max(start - cells.lead_in, 0), min(start + cells.source + cells.lead_in, source_frames)


def _soxr(frames: Frames, source_rate: int, target_rate: int) -> Frames:
    import numpy as np
    import soxr

    return soxr.resample(np.ascontiguousarray(frames), source_rate, target_rate, quality=QUALITY)
