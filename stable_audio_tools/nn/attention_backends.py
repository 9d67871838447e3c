"""Softmax attention of heads by different kernels. Each honours a `Visibility` or refuses it; none casts its inputs.

B batch, H heads, N queries, M keys, D channels of a head. Queries are (B, H, N, D); keys and values (B, H / group, M, D), each shared
by a group of query heads (arXiv:2305.13245). A query that sees nothing gets zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from .visibility import Visibility

Backend = Literal["auto", "sdpa", "flash", "flex"]
HALF = (torch.float16, torch.bfloat16)


def attend(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, *, backend: Backend = "auto") -> Tensor:
    """(B, H, N, D).

    Args:
        backend: `sdpa`, torch's own choice of kernel, with windows in bands; `flash`, memory linear in N, no padding masks, and
            windows with the flash_attn package alone; `flex`, any mask, compiled, on a CPU without gradients; `auto`: a window
            by flash_attn where that runs, else sdpa.

    Raises:
        ValueError: the backend cannot do this; the message says which can.
    """
    if backend == "auto":
        windowed = q.is_cuda and visibility.bounded and not _is_square_causal(visibility)
        backend = "flash" if windowed and _flash_refusal(q, visibility) is None else "sdpa"
    return _KERNELS[backend](q, k, v, visibility)


def prepare(visibility: Visibility, batch: int, *, backend: Backend = "auto") -> Visibility:
    """Make what the kernels of many layers will ask of this rule, outside of what is compiled or recomputed."""
    if backend == "flex":
        visibility.block_mask()
    elif backend != "flash" and visibility.band_size:
        visibility.bands(batch)
    elif backend != "flash" and not _is_square_causal(visibility):
        visibility.dense()
    return visibility


def _sdpa(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
    if visibility.band_size:
        return _banded(q, k, v, visibility)
    if _is_square_causal(visibility):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=_grouped(q, k))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visibility.dense(), enable_gqa=_grouped(q, k))


def _banded(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
    """Chunks of queries against the keys that the window lets any of them see: cost linear in N."""
    batch, length = q.shape[0], q.shape[2]
    size, left, right = visibility.band_size, visibility.left or 0, visibility.right or 0
    chunks = -(-length // size)
    behind = chunks * size - length
    q = F.pad(q, (0, 0, 0, behind)).unflatten(2, (chunks, size))
    k, v = (F.pad(x, (0, 0, left, behind + right)).unfold(2, size + left + right, size).mT for x in (k, v))
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visibility.bands(batch), enable_gqa=_grouped(q, k))
    return out.unflatten(0, (batch, chunks)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _flash(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
    if refusal := _flash_refusal(q, visibility):
        raise ValueError(f"attention backend 'flash': {refusal}")
    causal = _is_square_causal(visibility)
    if causal or not visibility.bounded:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=_grouped(q, k))
    kernel = _flash_attn()
    assert kernel is not None, "its absence is a refusal"
    window = tuple(-1 if side is None else side for side in (visibility.left, visibility.right))
    return kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), window_size=window).transpose(1, 2)


def _flash_refusal(q: Tensor, visibility: Visibility) -> str | None:
    """Why there is no flash kernel for this; None: there is."""
    if visibility.masked:
        return 'it takes no padding mask; set "backend" to "auto", "sdpa" or "flex"'
    if q.is_cuda and q.dtype not in HALF:
        return f'it computes in float16 or bfloat16, not {q.dtype}; train with precision bf16-mixed, or set "backend" to "auto"'
    if not visibility.bounded or _is_square_causal(visibility):
        return None
    if visibility.offset != visibility.keys - visibility.queries:
        return 'it has no causal rule for a context of another length; set "backend" to "auto", "sdpa" or "flex"'
    if not q.is_cuda or _flash_attn() is None:
        return 'a window needs the flash_attn package and a GPU; set "backend" to "auto", "sdpa" or "flex"'
    return None


@cache
def _flash_attn() -> Callable[..., Tensor] | None:
    """Its function where the package is installed, a heavy one and optional."""
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


def _flex(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
    if not q.is_cuda and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError('attention backend \'flex\' has no gradient on a CPU; train there with "backend": "auto" or "sdpa"')
    kernel = _compiled_flex() if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
    return cast(Tensor, kernel(q, k, v, block_mask=visibility.block_mask(), enable_gqa=_grouped(q, k)))


@cache
def _compiled_flex() -> Callable[..., object]:
    """Not compiled, it would hold all N x M scores."""
    return torch.compile(flex_attention)


def _is_square_causal(visibility: Visibility) -> bool:
    """The causal rule that every kernel knows; those for unequal lengths differ between kernels."""
    return visibility.only_causal and visibility.queries == visibility.keys


def _grouped(q: Tensor, k: Tensor) -> bool:
    return q.shape[1] != k.shape[1]


_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Visibility], Tensor]] = {"sdpa": _sdpa, "flash": _flash, "flex": _flex}
