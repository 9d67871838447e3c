"""Independent random streams from one seed: stream i of seed s is the same on every device, in every batch, on every rank."""

from __future__ import annotations

import torch

_MASK = (1 << 64) - 1


def derive_seed(seed: int, *indices: int) -> int:
    """A 63-bit seed for the stream (seed, *indices), scattered by splitmix64 (Steele et al. 2014) so that neighbours do not correlate."""
    state = seed & _MASK
    for index in indices:
        state = _splitmix64(state ^ _splitmix64(index & _MASK))
    return (state if indices else _splitmix64(state)) >> 1


def generator_for(seed: int, *indices: int) -> torch.Generator:
    """A CPU generator for the stream (seed, *indices); the global generator is not touched."""
    return torch.Generator().manual_seed(derive_seed(seed, *indices))


def _splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
