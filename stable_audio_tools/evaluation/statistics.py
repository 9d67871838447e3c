"""Shares with their confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959964  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Share:
    """How many of `total` fit. `hits` may be a fraction where it is an expectation."""

    hits: float
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953), sound near 0 and 1 too."""
        if not self.total:
            return 0.0, 1.0
        n, p, z2 = self.total, self.value, Z_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))

    def to_dict(self) -> dict[str, float]:
        low, high = self.interval
        return {"share": self.value, "low": low, "high": high, "hits": self.hits, "of": self.total}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.0f} to {100 * high:.0f})" if self.total else "-"
