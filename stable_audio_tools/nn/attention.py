"""Multi-head attention, for self- and cross-attention; `attention_backends` computes the softmax.

B batch, N queries, M keys, D width, H heads. Masks are bool, True = may be attended. A query that may attend to nothing gets zeros.
"""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from .attention_backends import Backend, attend
from .cache import KeyValueCache
from .embeddings import RotaryTable, rotate
from .norms import DynamicTanh, unit_length
from .visibility import Visibility

QKNorm = Literal["none", "l2", "ln", "dyt"]


class AttentionKwargs(TypedDict, total=False):
    """Options of `Attention`."""

    qk_norm: QKNorm
    differential: bool
    feat_scale: bool
    backend: Backend


class Attention(nn.Module):
    """Attention of x to itself, or to a context when `dim_context` is given.

    Keys and values keep the context's width, so a narrower context has fewer heads, each shared by a group of query
    heads (arXiv:2305.13245).

    Args:
        dim: width of x and of the output.
        dim_heads: channels of a head; divides `dim` and `dim_context`.
        dim_context: width of the context.
        causal: a token attends to itself and earlier ones.
        zero_init_output: start as a zero branch.
        qk_norm: norm of each query and key: none, `l2` (unit length), `ln` (layer norm) or `dyt` (DynamicTanh).
        differential: subtract a second attention with its own queries and keys.
        feat_scale: learned gains of the output's mean over tokens and of the rest, zero at first.
        backend: kernel, as in `attention_backends.attend`.

    Raises:
        ValueError: widths that do not divide.
    """

    def __init__(
        self,
        dim: int,
        *,
        dim_heads: int = 64,
        dim_context: int | None = None,
        causal: bool = False,
        zero_init_output: bool = True,
        qk_norm: QKNorm = "none",
        differential: bool = False,
        feat_scale: bool = False,
        backend: Backend = "auto",
    ):
        super().__init__()
        dim_kv = dim if dim_context is None else dim_context
        if dim % dim_heads or dim_kv % dim_heads or dim % dim_kv:
            raise ValueError(f"widths must divide: dim_heads {dim_heads}, keys and values {dim_kv}, queries {dim}")
        self.dim, self.dim_kv, self.dim_heads = dim, dim_kv, dim_heads
        self.cross, self.causal = dim_context is not None, causal
        self.qk_norm, self.differential, self.feat_scale = qk_norm, differential, feat_scale
        self.backend: Backend = backend

        pairs = 2 if differential else 1
        if dim_context is None:
            self.to_qkv = nn.Linear(dim, dim * (2 * pairs + 1), bias=False)
        else:
            self.to_q = nn.Linear(dim, dim * pairs, bias=False)
            self.to_kv = nn.Linear(dim_kv, dim_kv * (pairs + 1), bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        if zero_init_output:
            nn.init.zeros_(self.to_out.weight)

        if qk_norm == "ln":
            self.q_norm: nn.Module = nn.LayerNorm(dim_heads, eps=1e-6)
            self.k_norm: nn.Module = nn.LayerNorm(dim_heads, eps=1e-6)
        elif qk_norm == "dyt":
            self.q_norm, self.k_norm = DynamicTanh(dim_heads), DynamicTanh(dim_heads)
        if feat_scale:
            self.lambda_dc = nn.Parameter(torch.zeros(dim))
            self.lambda_hf = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Visibility | Tensor | None = None,
        rotary: RotaryTable | None = None,
        real: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(B, N, D) to (B, N, D).

        Args:
            context: (B, M, dim_context), exactly when the module was made with `dim_context` and no cache holds it.
            mask: which keys a query may attend to: a rule, or bool of two to four dimensions that expands to (B, H, N, M).
            rotary: positions of x, for self-attention.
            real: (B, N), which tokens of x are real; the means of `feat_scale` are over them.
            cache: earlier tokens, to which those of x are added; of cross-attention, the context once it is known.
        """
        queries, keys, v = self._project(x, context, rotary, cache)
        visibility = self._visibility(mask, x, v)
        parts = [attend(q, k, v, visibility, backend=self.backend) for q, k in zip(queries, keys, strict=True)]
        out = parts[0] - parts[1] if self.differential else parts[0]
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return self._scale_features(out, real) if self.feat_scale else out

    def _project(
        self, x: Tensor, context: Tensor | None, rotary: RotaryTable | None, cache: KeyValueCache | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Queries and keys, normed and rotated, two of each when differential, and values; each (B, H, N or M, dim_heads)."""
        known = cache is not None and cache.length > 0
        if (context is not None) != (self.cross and not known):
            raise ValueError(f"a context is {'needed' if self.cross and not known else 'not taken'} by this attention")
        if not self.cross:
            q, k, v, *second = self._split_heads(self.to_qkv(x), self.dim)
            queries, keys = [q, *second[:1]], [k, *second[1:]]
        else:
            queries = list(self._split_heads(self.to_q(x), self.dim))
            *keys, v = cache.stored if cache is not None and known else self._split_heads(self.to_kv(context), self.dim_kv)
        queries = [self._placed(q, "q", v.dtype, rotary) for q in queries]
        if self.cross and known:
            return queries, keys, v
        keys = [self._placed(k, "k", v.dtype, rotary) for k in keys]
        if cache is not None:
            *keys, v = cache.append(*keys, v)
        return queries, keys, v

    def _split_heads(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        """(B, N, parts * dim) to one (B, H, N, dim_heads) for each part."""
        return x.unflatten(-1, (-1, dim // self.dim_heads, self.dim_heads)).permute(2, 0, 3, 1, 4).unbind(0)

    def _placed(self, x: Tensor, role: Literal["q", "k"], dtype: torch.dtype, rotary: RotaryTable | None) -> Tensor:
        """Normed and rotated queries or keys."""
        if self.qk_norm == "l2":
            x = unit_length(x)
        elif self.qk_norm != "none":
            x = self.q_norm(x) if role == "q" else self.k_norm(x)
        if rotary is not None:
            x = rotate(x, rotary)
        return x.to(dtype)  # Norms keep float32 under autocast; the kernel wants one dtype.

    def _visibility(self, mask: Visibility | Tensor | None, x: Tensor, v: Tensor) -> Visibility:
        if not isinstance(mask, Visibility):
            mask = Visibility(x.shape[1], v.shape[2], allowed=mask, offset=0 if self.cross else v.shape[2] - x.shape[1], device=x.device)
        if (mask.queries, mask.keys) != (x.shape[1], v.shape[2]):
            raise ValueError(f"a mask for {mask.queries} queries and {mask.keys} keys, but there are {x.shape[1]} and {v.shape[2]}")
        return mask.causal() if self.causal else mask

    def _scale_features(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Gains of the mean over tokens and of the deviation from it."""
        mean = mean_of_real(x, real)
        return x + self.lambda_dc * mean + self.lambda_hf * (x - mean)


def mean_of_real(x: Tensor, real: Tensor | None) -> Tensor:
    """Mean over the tokens of (B, N, D) that (B, N) says are real, as (B, 1, D); zero where none is."""
    if real is None:
        return x.mean(dim=1, keepdim=True)
    total = x.masked_fill(~real[..., None], 0).sum(dim=1, keepdim=True)
    return total / real.sum(dim=1).clamp(min=1)[:, None, None].to(x.dtype)
