"""What a transformer keeps between the steps of a generation: the keys and values of the tokens it has seen.

B batch, H heads, n new and N stored tokens, D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """The tensors of one attention, along their token dimension, in buffers that double when they are full.

    Args:
        capacity: tokens to make room for at once.
    """

    def __init__(self, capacity: int = 0):
        self.length, self.capacity = 0, capacity
        self._buffers: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Store n tokens of each tensor (B, H, n, D) and give all (B, H, N, D), views that the next call may write behind.

        Raises:
            ValueError: a graph would be needed, or the batch is another one than before.
        """
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in new):
            raise ValueError("a cache keeps no graph: generate under torch.no_grad(), and train without a cache")
        if self._buffers and self._buffers[0].shape[0] != new[0].shape[0]:
            raise ValueError(f"the cache holds a batch of {self._buffers[0].shape[0]}, got {new[0].shape[0]}; make a new cache")
        start, self.length = self.length, self.length + new[0].shape[2]
        if not self._buffers or self.length > self._buffers[0].shape[2]:
            self._buffers = tuple(self._grown(index, tensor, start) for index, tensor in enumerate(new))
        for buffer, tensor in zip(self._buffers, new, strict=True):
            buffer[:, :, start : self.length] = tensor
        return self.stored

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """All tokens of each tensor; empty before the first `append`."""
        return tuple(buffer[:, :, : self.length] for buffer in self._buffers)

    def _grown(self, index: int, like: Tensor, filled: int) -> Tensor:
        self.capacity = max(self.capacity, self.length if not filled else 2 * self.length)
        buffer = like.new_empty(*like.shape[:2], self.capacity, like.shape[3])
        if filled:
            buffer[:, :, :filled] = self._buffers[index][:, :, :filled]
        return buffer


class LayerCache:
    """Of one block: self-attention's, which grows, and cross-attention's, which holds the context."""

    def __init__(self, capacity: int = 0):
        self.self_attn, self.cross_attn = KeyValueCache(capacity), KeyValueCache()


class TransformerCache:
    """Of a whole transformer, for one batch of sequences. `ContinuousTransformer.make_cache` makes one.

    layers: one `LayerCache` per block.
    length: tokens stored, those in front of the sequence included.
    in_front: how many of them stand in front.
    mask: (B, length), which of them are real; None: all.
    context_mask: (B, M), which context tokens are real; None: all.
    """

    def __init__(self, depth: int, capacity: int = 0):
        self.layers = [LayerCache(capacity) for _ in range(depth)]
        self.length = self.in_front = 0
        self.mask: Tensor | None = None
        self.context_mask: Tensor | None = None

    @property
    def context_length(self) -> int:
        """M, or 0 before the context is known."""
        return self.layers[0].cross_attn.length

    def extend_mask(self, mask: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor | None:
        """Which tokens are real, n new ones included, whose own mask is `mask` and whose (B, n) is `shape`."""
        if mask is not None or self.mask is not None:
            batch, new = shape
            before = torch.ones(batch, self.length, dtype=torch.bool, device=device) if self.mask is None else self.mask
            now = torch.ones(batch, new, dtype=torch.bool, device=device) if mask is None else mask
            self.mask = torch.cat((before, now), dim=1)
        return self.mask
