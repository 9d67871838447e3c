"""Updates of a weight by a matrix of low rank: LoRA (arXiv:2106.09685) and what was built on it.

Every weight counts as a matrix of output channels x everything else, so a convolution's is (out, in * kernel).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-12  # a direction of norm 0 stays 0


@dataclass(frozen=True)
class LowRankUpdate:
    """What an adapter knows of one weight W (out, in): W + scale * up @ down, with rows or columns rescaled where magnitudes are learned.

    down: (rank, in), up: (out, rank). Both are None for LoRA-XS (arXiv:2405.17604), which takes W's own singular vectors.
    scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732).
    core: (rank, rank), between the singular vectors of LoRA-XS.
    rows: (out,) norms of the new rows, for DoRA (arXiv:2402.09353).
    columns: (in,) norms of the new columns.
    row_norms: (out,) norms that the rows of W + scale * up @ down had when the adapter was saved; they tell one base from another.
    """

    down: Tensor | None
    up: Tensor | None
    scale: float
    core: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None
    row_norms: Tensor | None = None

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(out, in) of the weights that this fits; None: any."""
        rows, columns = (None if vector is None else len(vector) for vector in (self.rows, self.columns))
        return (self.up.shape[0] if self.up is not None else rows, self.down.shape[1] if self.down is not None else columns)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that was learned."""
        return tuple(t for t in (self.down, self.up, self.core, self.rows, self.columns) if t is not None)

    def fits(self, weight: Tensor) -> bool:
        """Whether this is an update of a weight of that shape."""
        flat = weight.flatten(1).shape
        return all(mine in (None, size) for mine, size in zip(self.shape, flat, strict=True)) and (
            self.core is None or len(self.core) <= min(flat)
        )

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The updated weight, float32, in the shape of `weight`.

        Args:
            strength: share of the update; 0 gives `weight`, and learned magnitudes move from its norms with it.
        """
        if strength == 0:
            return weight.float()
        base = weight.float().flatten(1)
        updated = base + strength * self.scale * self._product(base)
        if self.rows is not None:
            updated = _rescaled(updated, base, self.rows, strength, dim=1)
        if self.columns is not None:
            updated = _rescaled(updated, base, self.columns, strength, dim=0)
        return updated.view(weight.shape)

    def base_distance(self, weight: Tensor) -> float | None:
        """How far (relative, rms) `weight` is from the base of this adapter, as far as its rows tell; None where the file does not say."""
        if self.row_norms is None:
            return None
        base = weight.float().flatten(1)
        norms = (base + self.scale * self._product(base)).norm(dim=1)
        expected = self.row_norms.to(norms)
        return float((norms - expected).norm() / expected.norm().clamp_min(TINY))

    def _product(self, base: Tensor) -> Tensor:
        """(out, in), unscaled."""
        if self.core is None:
            assert self.up is not None and self.down is not None  # as files.py made it
            return self.up.to(base) @ self.down.to(base)
        left, right = singular_vectors(base, len(self.core))
        return left @ self.core.to(base) @ right


def singular_vectors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first left (out, rank) and right (rank, in) singular vectors; the largest entry of each left one is positive.

    Computed on the CPU in float32, so that the same weights give the same vectors on every device.
    """
    left, _, right = torch.linalg.svd(matrix.detach().float().cpu(), full_matrices=False)
    left, right = left[:, :rank], right[:rank]
    signs = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign()[0]
    signs[signs == 0] = 1
    return (left * signs).to(matrix), (right * signs[:, None]).to(matrix)


def _rescaled(updated: Tensor, base: Tensor, magnitude: Tensor, strength: float, *, dim: int) -> Tensor:
    """`updated` with its rows (dim 1) or columns (dim 0) at the learned norms, or at a mix of those and the base's."""
    own = base.norm(dim=dim, keepdim=True)
    norms = own + strength * (magnitude.to(base).unsqueeze(dim) - own)
    return updated / (updated.norm(dim=dim, keepdim=True) + TINY) * norms
