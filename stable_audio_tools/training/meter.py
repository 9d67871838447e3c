"""Means of scalars between two log lines, kept on the device so that no step waits for the GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MetricMeter:
    """Adds up scalars by name; each name has its own count, since players take turns."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self._totals[name] = self._totals[name] + value if name in self._totals else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """The mean of each name since the last call, in one transfer from the device."""
        if not self._totals:
            return {}
        means = torch.stack([total / self._counts[name] for name, total in self._totals.items()]).tolist()
        names = list(self._totals)
        self._totals, self._counts = {}, {}
        return dict(zip(names, means, strict=True))
