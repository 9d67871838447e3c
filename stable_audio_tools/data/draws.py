"""Random numbers as pure functions of their names, so that workers, ranks and restarts cannot change them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def hashed(*names: int | str) -> int:
    """A number in [0, 2^63) that depends on `names` alone, the same in every process and on every platform."""
    text = "/".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def below(limit: int, *names: int | str) -> int:
    """A whole number in [0, limit), every one as likely to within limit / 2^63."""
    return hashed(*names) % limit


def fraction(*names: int | str) -> float:
    """A number in [0, 1)."""
    return (hashed(*names) >> 10) / (1 << 53)


def permutation(length: int, *names: int | str) -> Tensor:
    """(length,) int64: the whole numbers below `length` in an order named by `names`."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(hashed(*names)))
