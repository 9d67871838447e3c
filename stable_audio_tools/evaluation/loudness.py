"""How loud a clip is, and how much of it is silent. Levels are in dB relative to full scale (dBFS)."""

from __future__ import annotations

import torch
from torch import Tensor

from .clips import block_energy

# The "fast" time weighting of sound level meters is 125 ms (IEC 61672-1).
LEVEL_WINDOW_S = 0.125
SILENCE_BLOCK_S = 0.02
SILENCE_DB = -60.0


def level_db(audio: Tensor, sample_rate: int) -> Tensor:
    """(B, C, T) to (B,): RMS of the loudest 125 ms, over all channels; -inf for digital silence, NaN where a sample is.

    A clip shorter than that is taken whole. Unlike the RMS of the whole clip it says of a bell or a plucked string what
    the ear says, and does not change with the silence around a sound.
    """
    step = max(1, round(LEVEL_WINDOW_S * sample_rate / 4))
    power = audio.detach().to("cpu", torch.float64).square().mean(1)
    steps = power.shape[-1] // step
    if steps < 4:
        return 10 * power.mean(-1).log10()
    blocks = power[:, : steps * step].unflatten(-1, (steps, step)).mean(-1)
    return 10 * blocks.unfold(-1, 4, 1).mean(-1).amax(-1).log10()


def silence_share(audio: Tensor, sample_rate: int) -> Tensor:
    """(B, C, T) to (B,): share of the 20 ms blocks whose RMS is below -60 dBFS; NaN where a sample is."""
    block = min(audio.shape[-1], max(1, round(SILENCE_BLOCK_S * sample_rate)))
    power = block_energy(audio.detach().to("cpu", torch.float64).square().mean(1).sqrt(), block) / block
    silent = (power < 10 ** (SILENCE_DB / 10)).to(torch.float64).mean(-1)
    return torch.where(power.isfinite().all(-1), silent, torch.nan)
