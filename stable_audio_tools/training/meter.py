"""Means of scalars between two log lines, kept on the device so that no step waits for the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counted:
    """A mean over a number of examples that differs from step to step, and may be none.

    total, count: scalars on one device; what is logged is the sum of all totals over the sum of all counts.
    """

    total: Tensor
    count: Tensor


class MetricMeter:
    """Adds up scalars by name; each name has its own count, since players take turns."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, values: Mapping[str, Tensor | Counted]) -> None:
        for name, value in values.items():
            total, count = (value.total, value.count) if isinstance(value, Counted) else (value, 1.0)
            total = total.detach().float()
            self._totals[name] = self._totals[name] + total if name in self._totals else total
            self._counts[name] = self._counts[name] + count if name in self._counts else count

    def pop(self) -> dict[str, float]:
        """The mean of each name since the last call, in one transfer from the device; a name that counted nothing is left out."""
        if not self._totals:
            return {}
        on_device = {name: count for name, count in self._counts.items() if isinstance(count, Tensor)}
        numbers = torch.stack([*self._totals.values(), *(count.float() for count in on_device.values())]).tolist()
        totals = dict(zip(self._totals, numbers, strict=False))
        counts = self._counts | dict(zip(on_device, numbers[len(totals) :], strict=True))
        self._totals, self._counts = {}, {}
        return {name: total / counts[name] for name, total in totals.items() if counts[name]}
