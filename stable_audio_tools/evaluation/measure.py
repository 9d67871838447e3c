"""One number of an evaluation: with its confidence interval, and with the recipe that repeats it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .statistics import Share

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Measure:
    """A value and what it rests on.

    value, low, high: the value and its 95 % interval; NaN where nothing could be measured.
    n: clips that it rests on; of two sets, the smaller one.
    recipe: all that fixes the number, as plain JSON values: embedder and its hash, rates, loudness rule, seed, counts.
    better: which way is good; None: the number describes and does not judge.
    same_source: the 95 % range of the same number where both sets come from one source, found by dealing the clips of both out anew: a
        value inside it says that no difference was found. None for what does not compare two sets.
    details: rows behind the number, as plain JSON values, such as the closest pairs.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    recipe: Mapping[str, Any]
    better: Better | None = None
    unit: str = ""
    same_source: tuple[float, float] | None = None
    details: Sequence[Mapping[str, Any]] = field(default=())

    @classmethod
    def of_share(cls, name: str, share: Share, recipe: Mapping[str, Any], better: Better | None) -> Measure:
        """A share with Wilson's interval."""
        low, high = share.interval
        return cls(name, share.value, low, high, share.total, {**recipe, "interval": "95 %, Wilson"}, better, "share")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not a finite number is None."""
        plain: dict[str, Any] = {
            "name": self.name,
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "n": self.n,
            "unit": self.unit,
            "better": self.better,
            "recipe": dict(self.recipe),
        }
        if self.same_source is not None:
            plain["same_source"] = [_finite(end) for end in self.same_source]
        return plain | ({"details": [dict(row) for row in self.details]} if self.details else {})

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return f"{self.name}: -"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name}: {self.value:.4g}{unit} ({self.low:.4g} to {self.high:.4g}), {self.n} clips"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
