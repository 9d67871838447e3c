"""Which keys a query may attend to, as a rule from which each attention backend takes the form it can use.

B batch, H heads, N queries, M keys. Masks are bool, True = may be attended.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

Window = tuple[int, int]


class Visibility:
    """A rule for N queries at positions `offset`, `offset` + 1, ... and M keys at positions 0, 1, ...

    One object serves all layers of a forward, so what it computes is computed once. Bounds that bind nobody are dropped: a causal
    rule for one query behind all keys is no rule.

    Args:
        queries, keys: N and M.
        real: (B, M), the keys that may be attended at all.
        allowed: any further mask that expands to (B, H, N, M).
        causal: no key behind the query's position.
        window: keys seen to the left and right of that position; -1: all on that side.
        offset: position of the first query, as when earlier keys come from a cache.
        device: where masks are made.
    """

    def __init__(
        self,
        queries: int,
        keys: int,
        *,
        real: Tensor | None = None,
        allowed: Tensor | None = None,
        causal: bool = False,
        window: Window | None = None,
        offset: int = 0,
        device: torch.device | None = None,
    ):
        self.queries, self.keys, self.offset = queries, keys, offset
        self.real, self.allowed, self.device = real, allowed, device
        left, right = (None if side < 0 else side for side in window or (-1, -1))
        if causal:
            right = 0
        self.left = None if left is None or left >= offset + queries - 1 else left
        self.right = None if right is None or offset + right >= keys - 1 else right

    @property
    def bounded(self) -> bool:
        """Distance matters."""
        return self.left is not None or self.right is not None

    @property
    def masked(self) -> bool:
        """Some keys are hidden for another reason than distance."""
        return self.real is not None or self.allowed is not None

    @property
    def only_causal(self) -> bool:
        """The first query sees the first key, the second two, and so on: the rule that kernels know by name."""
        return self.left is None and self.right == 0 and self.offset == 0 and not self.masked

    def causal(self) -> Visibility:
        """This rule, and no key behind the query."""
        if self.right == 0 or self.offset >= self.keys - 1:
            return self
        window = (-1 if self.left is None else self.left, 0)
        return Visibility(
            self.queries, self.keys, real=self.real, allowed=self.allowed, window=window, offset=self.offset, device=self.device
        )

    @cached_property
    def dense(self) -> Tensor | None:
        """As a mask that expands to (B, H, N, M); None: everything is seen."""
        parts = [] if self.real is None else [self.real[:, None, None, :]]
        if self.allowed is not None:
            parts.append(self.allowed)
        if self.bounded:
            queries = torch.arange(self.offset, self.offset + self.queries, device=self.device)
            parts.append(self.near(queries[:, None], torch.arange(self.keys, device=self.device)))
        mask = parts.pop() if parts else None
        for part in parts:
            mask = mask & part
        return mask

    def near(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether the bounds let positions `queries` see positions `keys`."""
        distance = keys - queries
        seen = torch.ones_like(distance, dtype=torch.bool)
        if self.left is not None:
            seen = seen & (distance >= -self.left)
        return seen if self.right is None else seen & (distance <= self.right)
