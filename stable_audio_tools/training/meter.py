"""Means of scalars between two log lines, kept on the device so that no step waits for the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.training.rank_state import gathered


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

    def copy(self) -> MetricMeter:
        """Another meter that goes on from here."""
        other = MetricMeter()
        other._totals, other._counts = dict(self._totals), dict(self._counts)
        return other

    def state_dict(self) -> dict[str, dict[str, Tensor | float]]:
        """What was added since the last `pop`."""
        return {"totals": dict(self._totals), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
        """Go on as the meter that `state` is of."""
        self._totals = {name: total.to(device) for name, total in state["totals"].items()}
        self._counts = {name: count.to(device) if isinstance(count, Tensor) else count for name, count in state["counts"].items()}

    def pop(self) -> dict[str, float]:
        """The mean of each name over all processes since the last call; a name that counted nothing is left out.

        One transfer from the device. Every process must make the call; each may have seen other names.
        """
        totals: dict[str, float] = {}
        counts: dict[str, float] = {}
        for own in gathered(self._numbers()):
            for name, (total, count) in own.items():
                totals[name] = totals.get(name, 0.0) + total
                counts[name] = counts.get(name, 0.0) + count
        self._totals, self._counts = {}, {}
        return {name: total / counts[name] for name, total in totals.items() if counts[name]}

    def _numbers(self) -> dict[str, tuple[float, float]]:
        """Total and count of each name."""
        if not self._totals:
            return {}
        on_device = {name: count for name, count in self._counts.items() if isinstance(count, Tensor)}
        numbers = torch.stack([*self._totals.values(), *(count.float() for count in on_device.values())]).tolist()
        totals = dict(zip(self._totals, numbers, strict=False))
        counts = self._counts | dict(zip(on_device, numbers[len(totals) :], strict=True))
        return {name: (total, counts[name]) for name, total in totals.items()}
