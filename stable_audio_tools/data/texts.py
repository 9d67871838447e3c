"""Many short texts in two tensors: no object for each, and memory that worker processes share, whichever way they start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """content: (bytes,) uint8, all texts one after another. bounds: (N + 1,) int64, where they begin and end."""

    content: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> Texts:
        held = texts if isinstance(texts, Sequence) else list(texts)
        content = torch.frombuffer(bytearray(b"".join(held)) or bytearray(1), dtype=torch.uint8)
        bounds = torch.tensor([0, *accumulate(map(len, held))])
        return cls(content[: int(bounds[-1])], bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def text(self, index: int) -> bytes:
        start, end = self.bounds[index : index + 2].tolist()
        return self.content[start:end].numpy().tobytes()

    def all(self) -> list[bytes]:
        whole, bounds = self.content.numpy().tobytes(), self.bounds.tolist()
        return [whole[start:end] for start, end in pairwise(bounds)]
