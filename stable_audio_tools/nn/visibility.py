"""Which keys a query may attend to, as a rule from which each attention backend takes the form it can use.

B batch, H heads, N queries, M keys. Masks are bool, True = may be attended.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Window = tuple[int, int]
MIN_BAND = 64  # chosen: shorter chunks leave a kernel too little to do


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
        # Attributes and no cached_property, whose lock torch.compile cannot trace on Python 3.11.
        self._dense: Tensor | None = None
        self._bands: Tensor | None = None
        self._block_mask: BlockMask | None = None

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

    @property
    def band_size(self) -> int:
        """Queries of a chunk where a window is narrow enough that chunks against their near keys pay; 0: it is not."""
        square = self.queries == self.keys and self.offset == 0
        if not square or self.left is None or self.right is None or self.allowed is not None:
            return 0
        reach = self.left + self.right
        size = max(MIN_BAND, reach)
        return size if self.queries >= 2 * (size + reach) else 0

    @property
    def given(self) -> Tensor | None:
        """What is hidden for another reason than distance, as a mask of four dimensions that expands to (B, H, N, M)."""
        mask = None if self.real is None else self.real[:, None, None, :]
        if self.allowed is None:
            return mask
        allowed = self.allowed[(None,) * (4 - self.allowed.ndim)]
        return allowed if mask is None else allowed & mask

    def dense(self) -> Tensor | None:
        """As a mask that expands to (B, H, N, M); None: everything is seen."""
        given = self.given
        if not self.bounded:
            return given
        if self._dense is None:
            queries = torch.arange(self.offset, self.offset + self.queries, device=self.device)
            near = self.near(queries[:, None], torch.arange(self.keys, device=self.device))
            self._dense = near if given is None else given & near
        return self._dense

    def bands(self, batch: int) -> Tensor:
        """The mask of chunks of `band_size` queries against their near keys: (B * chunks, 1, band_size, band_size + left + right)."""
        if self._bands is None:
            size, left, right = self.band_size, self.left or 0, self.right or 0
            queries = torch.arange(size, device=self.device)
            keys = torch.arange(-left, size + right, device=self.device)
            chunks = -(-self.queries // size)
            real = self.real if self.real is not None else torch.ones(1, self.keys, dtype=torch.bool, device=self.device)
            real = F.pad(real, (left, chunks * size - self.keys + right)).unfold(1, size + left + right, size)
            mask = real.expand(batch, -1, -1)[:, :, None] & self.near(queries[:, None], keys)
            self._bands = mask.flatten(0, 1)[:, None]
        return self._bands

    def block_mask(self) -> BlockMask | None:
        """As flex attention takes it; None: everything is seen."""
        if self._block_mask is None and (self.masked or self.bounded):
            self._block_mask = self._make_block_mask()
        return self._block_mask

    def _make_block_mask(self) -> BlockMask:
        given = self.given
        spans = (0, 0, 0, 0) if given is None else tuple(int(size > 1) for size in given.shape)
        batch, heads = (given.shape[axis] if given is not None and spans[axis] else None for axis in (0, 1))

        def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            near = self.near(query + self.offset, key)
            if given is None:
                return near
            return near & given[b * spans[0], h * spans[1], query * spans[2], key * spans[3]]

        return create_block_mask(seen, batch, heads, self.queries, self.keys, device=self.device or "cpu")

    def near(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether the bounds let positions `queries` see positions `keys`."""
        distance = keys - queries
        seen = torch.ones_like(distance, dtype=torch.bool)
        if self.left is not None:
            seen = seen & (distance >= -self.left)
        return seen if self.right is None else seen & (distance <= self.right)
