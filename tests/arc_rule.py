"""Weights and inputs of `tests/reference/arc_*.json`, which hold what the peer computes with them.

Parameter i of a module, by name, holds cos(2 pi u / 1009), u = (7 n^2 + 37 n + 101 (i + shift)) mod 1009: matrices and kernels times
sqrt(2 / fan_in), everything else as 0.5 + a tenth of it.
"""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill(module: nn.Module, shift: int = 0) -> None:
    for index, (_, parameter) in enumerate(sorted(module.named_parameters())):
        n = torch.arange(parameter.numel(), dtype=torch.int64)
        base = torch.cos(2 * math.pi * ((7 * n * n + 37 * n + 101 * (index + shift)) % 1009).double() / 1009)
        scaled = base * math.sqrt(2 / (parameter.numel() / parameter.shape[0])) if parameter.ndim >= 2 else 0.5 + 0.1 * base
        parameter.copy_(scaled.reshape(parameter.shape))


def wave(shape: tuple[int, ...], s: int) -> Tensor:
    """cos(2 pi u / 2003), u = ((3 + s) n^2 + (11 + 7 s) n + 17 s) mod 2003."""
    n = torch.arange(math.prod(shape), dtype=torch.int64)
    return torch.cos(2 * math.pi * (((3 + s) * n * n + (11 + 7 * s) * n + 17 * s) % 2003).double() / 2003).reshape(tuple(shape)).float()
