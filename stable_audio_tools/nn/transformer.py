"""The transformer of denoisers and language models: blocks over tokens, with conditions by prefix, cross-attention or adaLN.

B batch, N tokens, M context tokens, D width. Token masks are (B, N) bool, True = real. A masked token reaches no other one:
neither through attention nor through a convolution; its own output is arbitrary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, AttentionKwargs, mean_of_real
from .attention_backends import Backend, prepare
from .cache import LayerCache, TransformerCache
from .embeddings import AbsolutePositions, RotaryEmbedding, RotaryTable, SinusoidalPositions
from .feedforward import ConformerModule, FeedForward, FeedForwardKwargs
from .norms import DynamicTanh, LayerNorm, LayerScale, NormKwargs
from .recompute import Recompute, recomputed
from .visibility import Visibility, Window


class Modulation(NamedTuple):
    """Scale, shift and gate of one branch, each (B, 1 or N, D) or absent: adaptive layer norm (arXiv:2212.09748, section 3.2).

    The gate is sigmoid(1 - g), as published models have it: 0.73 at g = 0.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    gate: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        return x if self.scale is None or self.shift is None else torch.addcmul(self.shift, x, 1 + self.scale)

    def after(self, x: Tensor) -> Tensor:
        return x if self.gate is None else x * torch.sigmoid(1 - self.gate)


class TransformerBlock(nn.Module):
    """Self-attention, then cross-attention and a conformer module where asked for, then a feed-forward network; all residual.

    Args:
        dim: width D; heads have `dim_heads` channels, or all of a narrower `dim`.
        cross_attend: attend to a context of width `dim_context` (default `dim`).
        global_cond: adaLN: scale, shift and gate self-attention and feed-forward by a (B, 6 D) condition, or one per token.
        causal: a token attends to itself and earlier ones.
        causal_cross_attention: with `causal`, token i attends to the first i + 1 tokens of the context only, as published code does.
        remove_norms: DynamicTanh in place of layer norms.
        add_rope: make an own rotary table when none is given.
        layer_scale: learned gains on the branches, nearly zero at first; the branches are then not zero-initialised.
    """

    def __init__(
        self,
        dim: int,
        *,
        dim_heads: int = 64,
        cross_attend: bool = False,
        dim_context: int | None = None,
        global_cond: bool = False,
        causal: bool = False,
        causal_cross_attention: bool = True,
        zero_init_branch_outputs: bool = True,
        conformer: bool = False,
        remove_norms: bool = False,
        add_rope: bool = False,
        layer_scale: bool = False,
        attn_kwargs: AttentionKwargs | None = None,
        ff_kwargs: FeedForwardKwargs | None = None,
        norm_kwargs: NormKwargs | None = None,
    ):
        super().__init__()
        zero_init = zero_init_branch_outputs and not layer_scale
        dim_heads = min(dim_heads, dim)
        attn_kwargs, norm_kwargs = attn_kwargs or {}, norm_kwargs or {}
        ff_kwargs = {"zero_init_output": zero_init, **(ff_kwargs or {})}

        def norm() -> nn.Module:
            return DynamicTanh(dim) if remove_norms else LayerNorm(dim, **norm_kwargs)

        def scale() -> nn.Module:
            return LayerScale(dim) if layer_scale else nn.Identity()

        self.pre_norm = norm()
        self.self_attn = Attention(dim, dim_heads=dim_heads, causal=causal, zero_init_output=zero_init, **attn_kwargs)
        self.self_attn_scale = scale()
        self.cross_attend = cross_attend
        if cross_attend:
            self.cross_attend_norm = norm()
            self.cross_attn = Attention(
                dim,
                dim_heads=dim_heads,
                dim_context=dim_context or dim,
                causal=causal and causal_cross_attention,
                zero_init_output=zero_init,
                **attn_kwargs,
            )
            self.cross_attn_scale = scale()
        self.conformer = ConformerModule(dim, norm_kwargs=norm_kwargs, zero_init_output=zero_init) if conformer else None
        if conformer:
            self.conformer_scale = scale()
        self.ff_norm = norm()
        self.ff = FeedForward(dim, **ff_kwargs)
        self.ff_scale = scale()
        self.to_scale_shift_gate = nn.Parameter(torch.randn(6 * dim) / dim**0.5) if global_cond else None
        self.rope = RotaryEmbedding(dim_heads // 2) if add_rope else None

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Visibility | Tensor | None = None,
        global_cond: Tensor | None = None,
        mask: Tensor | None = None,
        attention_mask: Visibility | Tensor | None = None,
        rotary: RotaryTable | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, N, D) to (B, N, D).

        Args:
            context: (B, M, dim_context), exactly when the block has cross-attention and no cache holds it.
            context_mask: rule, or bool that expands to (B, H, N, M).
            global_cond: (B, 6 D) or (B, N, 6 D), exactly when the block was made with `global_cond`.
            mask: (B, N), which tokens are real: those that convolutions and means over tokens may see.
            attention_mask: rule, or bool that expands to (B, H, N, N).
            rotary: table of the N positions.
            cache: of the tokens before x.
        """
        if rotary is None and self.rope is not None:
            rotary = self.rope(x.shape[1])
        attn, ff = self._modulations(global_cond)

        branch = attn.before(self.pre_norm(x))
        kept = None if cache is None else cache.self_attn
        branch = self.self_attn(branch, mask=attention_mask, rotary=rotary, real=mask, cache=kept)
        x = x + self.self_attn_scale(attn.after(branch))
        if self.cross_attend:
            kept = None if cache is None else cache.cross_attn
            branch = self.cross_attn(self.cross_attend_norm(x), context, mask=context_mask, real=mask, cache=kept)
            x = x + self.cross_attn_scale(branch)
        if self.conformer is not None:
            x = x + self.conformer_scale(self.conformer(x, mask))
        return x + self.ff_scale(ff.after(self.ff(ff.before(self.ff_norm(x)), mask)))

    def _modulations(self, global_cond: Tensor | None) -> tuple[Modulation, Modulation]:
        """Of self-attention and of the feed-forward network."""
        if (self.to_scale_shift_gate is None) != (global_cond is None):
            raise ValueError("a global condition is given exactly when the block was made with global_cond")
        if self.to_scale_shift_gate is None or global_cond is None:
            return Modulation(), Modulation()
        if global_cond.ndim == 2:
            global_cond = global_cond[:, None]
        parts = (self.to_scale_shift_gate + global_cond).chunk(6, dim=-1)
        return Modulation(*parts[:3]), Modulation(*parts[3:])


class ContinuousTransformer(nn.Module):
    """Blocks over a sequence of vectors, with learned memory tokens and prepended conditions in front of it.

    The sequence of a block is memory tokens, prepended tokens, then x; positions count from its start.

    Args:
        dim: width D.
        depth: number of blocks.
        dim_in, dim_out: widths of input and output; default: D, and no projection.
        cross_attend, cond_token_dim: whether there is a context, and its width.
        final_cross_attn_ix: last block with cross-attention; -1: all have it.
        global_cond_dim: width of an adaLN condition; None: there is none.
        rotary_pos_emb: rotary positions in half of each head's channels, at least 32 where a head has them.
        use_sinusoidal_emb, use_abs_pos_emb: add fixed or learned positions, at most one of them.
        num_memory_tokens: learned tokens in front, taken off the output. arXiv:2309.16588.
        sliding_window: tokens seen to the left and right of each; -1: all on that side.
        activation_checkpointing: what each block computes again in the backward pass, as in `recompute.recomputed`.

    The remaining arguments are those of `TransformerBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        dim_in: int | None = None,
        dim_out: int | None = None,
        dim_heads: int = 64,
        cross_attend: bool = False,
        cond_token_dim: int | None = None,
        final_cross_attn_ix: int = -1,
        global_cond_dim: int | None = None,
        causal: bool = False,
        causal_cross_attention: bool = True,
        rotary_pos_emb: bool = True,
        zero_init_branch_outputs: bool = True,
        conformer: bool = False,
        use_sinusoidal_emb: bool = False,
        use_abs_pos_emb: bool = False,
        abs_pos_emb_max_length: int = 10000,
        num_memory_tokens: int = 0,
        sliding_window: Window | None = None,
        remove_norms: bool = False,
        add_rope: bool = False,
        layer_scale: bool = False,
        attn_kwargs: AttentionKwargs | None = None,
        ff_kwargs: FeedForwardKwargs | None = None,
        norm_kwargs: NormKwargs | None = None,
        activation_checkpointing: Recompute = "none",
    ):
        super().__init__()
        self.num_memory_tokens, self.sliding_window, self.cross_attend = num_memory_tokens, sliding_window, cross_attend
        self.activation_checkpointing: Recompute = activation_checkpointing
        self.causal, self.causal_cross = causal, causal and causal_cross_attention
        self.backend: Backend = (attn_kwargs or {}).get("backend", "auto")
        looks_ahead = {
            "conformer": conformer,
            "use_conv": (ff_kwargs or {}).get("use_conv", False) and (ff_kwargs or {}).get("conv_kernel_size") != 1,
            "feat_scale": (attn_kwargs or {}).get("feat_scale", False),
            "causal false": not (causal or (sliding_window is not None and sliding_window[1] == 0)),
        }
        self.cannot_cache = [name for name, present in looks_ahead.items() if present]

        self.project_in = nn.Identity() if dim_in is None else nn.Linear(dim_in, dim, bias=False)
        self.project_out = nn.Identity() if dim_out is None else nn.Linear(dim, dim_out, bias=False)
        self.rotary_pos_emb = RotaryEmbedding(rotary_channels(dim_heads)) if rotary_pos_emb else None
        if num_memory_tokens > 0:
            self.memory_tokens = nn.Parameter(torch.randn(num_memory_tokens, dim))
        self.pos_emb: nn.Module | None = None
        if use_abs_pos_emb:
            self.pos_emb = AbsolutePositions(dim, abs_pos_emb_max_length + num_memory_tokens)
        elif use_sinusoidal_emb:
            self.pos_emb = SinusoidalPositions(dim)
        self.global_cond_embedder: nn.Module | None = None
        if global_cond_dim is not None:
            self.global_cond_embedder = nn.Sequential(nn.Linear(global_cond_dim, dim), nn.SiLU(), nn.Linear(dim, dim * 6))

        self.layers = nn.ModuleList(
            TransformerBlock(
                dim,
                dim_heads=dim_heads,
                cross_attend=cross_attend and (final_cross_attn_ix == -1 or index <= final_cross_attn_ix),
                dim_context=cond_token_dim,
                global_cond=global_cond_dim is not None,
                causal=causal,
                causal_cross_attention=causal_cross_attention,
                zero_init_branch_outputs=zero_init_branch_outputs,
                conformer=conformer,
                remove_norms=remove_norms,
                add_rope=add_rope,
                layer_scale=layer_scale,
                attn_kwargs=attn_kwargs,
                ff_kwargs=ff_kwargs,
                norm_kwargs=norm_kwargs,
            )
            for index in range(depth)
        )

    def make_cache(self, capacity: int = 0) -> TransformerCache:
        """An empty cache for one generation; `capacity` tokens are made room for at once.

        Raises:
            ValueError: a token's output depends on later ones, so that nothing can be kept.
        """
        self._check_cacheable()
        return TransformerCache(len(self.layers), capacity)

    def _check_cacheable(self) -> None:
        if self.cannot_cache:
            raise ValueError(f"no cache with {', '.join(self.cannot_cache)}: tokens would depend on later ones; generate without it")

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        global_cond: Tensor | None = None,
        other_cond: Tensor | None = None,
        other: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        exit_layer_ix: int | None = None,
        hidden: list[Tensor] | None = None,
        cache: TransformerCache | None = None,
    ) -> Tensor:
        """(B, N, dim_in) to (B, P + N, dim_out), the P prepended tokens included.

        With a cache, x are the new tokens alone. Context, its mask and prepended tokens are given with the first of them and
        kept; a global condition is given each time.

        Args:
            context: (B, M, cond_token_dim) for cross-attention.
            context_mask: (B, M), which of its tokens may be attended.
            global_cond: (B, global_cond_dim) for adaLN, or (B, N, global_cond_dim), one per token of x; what stands in front of x
                then gets the mean over its real tokens.
            other_cond, other: (B, global_cond_dim) for those tokens of x that `other` (B, N) names, in place of global_cond (B, ...).
            prepend_embeds: (B, P, D) tokens to put in front.
            prepend_mask: (B, P), which of them are real.
            mask: (B, N), which tokens of x are real.
            positions: (N,) or (B, N), of the tokens of x, also fractions; default: 0, 1, ... Those in front stand before 0.
            exit_layer_ix: return the output (B, P + N, D) of this block.
            hidden: filled with the output (B, memory + P + N, D) of each block.
            cache: of `make_cache`; holds what came before x, and x afterwards.

        Raises:
            ValueError: no such block, a condition that has no place or is missing, or more tokens than learned positions.
        """
        self._check(exit_layer_ix, cache, context=context, context_mask=context_mask, prepend_embeds=prepend_embeds)
        start = 0 if cache is None else cache.length
        memory = self.num_memory_tokens if start == 0 else 0
        length = x.shape[1]
        x, real = self._put_in_front(self.project_in(x), prepend_embeds, mask, prepend_mask, memory)
        place = self._positions(positions, x.shape[1] - length, x.shape[1], cache, x.device)
        if self.pos_emb is not None:
            x = x + self.pos_emb(place)
        shared = {
            "context_mask": self._context_visibility(x, context, context_mask, cache),
            "global_cond": self._embed_global(global_cond, other_cond, other, mask, x.shape[1] - length, cached=cache is not None),
            "mask": real,
            "attention_mask": self._visibility(x, real, cache),
            "rotary": self._rotary(place),
        }
        if cache is not None:
            cache.in_front, cache.length = cache.in_front + x.shape[1] - length, start + x.shape[1]
        for index, layer in enumerate(self.layers):
            arguments = {**shared, "context": context if layer.cross_attend else None, "cache": cache and cache.layers[index]}
            x = recomputed(partial(layer, **arguments), x, self.activation_checkpointing)
            if hidden is not None:
                hidden.append(x)
            if index == exit_layer_ix:
                return x[:, memory:]
        return self.project_out(x[:, memory:])

    def _check(self, exit_layer_ix: int | None, cache: TransformerCache | None, **given: Tensor | None) -> None:
        if exit_layer_ix is not None and not 0 <= exit_layer_ix < len(self.layers):
            raise ValueError(f"exit_layer_ix {exit_layer_ix} is none of the {len(self.layers)} layers, which count from 0")
        if cache is None or cache.length == 0:
            if (given["context"] is not None) != self.cross_attend:
                raise ValueError("a context is given exactly when the transformer was made with cross_attend")
        elif late := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{' and '.join(late)} belong to the first tokens of a cache, which keeps them")
        if cache is not None:
            self._check_cacheable()
        if cache is not None and exit_layer_ix is not None:
            raise ValueError("exit_layer_ix leaves layers of the cache without the new tokens; use one of the two")

    def _put_in_front(
        self, x: Tensor, prepended: Tensor | None, mask: Tensor | None, prepend_mask: Tensor | None, memory: int
    ) -> tuple[Tensor, Tensor | None]:
        """Memory tokens, prepended tokens, x; and the mask of them all where any has one."""
        batch = x.shape[0]
        tokens = [(x, mask)]
        if prepended is not None:
            tokens.insert(0, (prepended, prepend_mask))
        if memory:
            tokens.insert(0, (self.memory_tokens.expand(batch, -1, -1), None))
        if mask is None and prepend_mask is None:
            return torch.cat([part for part, _ in tokens], dim=1) if len(tokens) > 1 else x, None
        masks = [torch.ones(part.shape[:2], dtype=torch.bool, device=x.device) if real is None else real for part, real in tokens]
        return torch.cat([part for part, _ in tokens], dim=1), torch.cat(masks, dim=1)

    def _positions(
        self, positions: Tensor | None, in_front: int, length: int, cache: TransformerCache | None, device: torch.device
    ) -> int | Tensor:
        """Of all tokens of this call, those in front included: how many, where they count from 0, else which."""
        start = 0 if cache is None else cache.length
        if isinstance(self.pos_emb, AbsolutePositions):
            self.pos_emb.check(start + length)
        if positions is None:
            return length if start == 0 else torch.arange(start, start + length, device=device)
        before = torch.arange(in_front, device=device, dtype=positions.dtype).expand(*positions.shape[:-1], -1)
        return torch.cat((before, positions + in_front + (0 if cache is None else cache.in_front)), dim=-1)

    def _visibility(self, x: Tensor, real: Tensor | None, cache: TransformerCache | None) -> Visibility:
        """Of self-attention."""
        start = 0 if cache is None else cache.length
        if cache is not None:
            real = cache.extend_mask(real, x.shape[:2], x.device)
        rule = Visibility(
            x.shape[1], start + x.shape[1], real=real, causal=self.causal, window=self.sliding_window, offset=start, device=x.device
        )
        return prepare(rule, x.shape[0], backend=self.backend)

    def _context_visibility(
        self, x: Tensor, context: Tensor | None, context_mask: Tensor | None, cache: TransformerCache | None
    ) -> Visibility | None:
        """Of cross-attention; None: there is none."""
        if not self.cross_attend:
            return None
        start = 0 if cache is None else cache.length
        if cache is not None and start == 0:
            cache.context_mask = context_mask
        elif cache is not None:
            context_mask = cache.context_mask
        keys = context.shape[1] if context is not None else cache.context_length if cache is not None else 0
        rule = Visibility(x.shape[1], keys, real=context_mask, causal=self.causal_cross, offset=start, device=x.device)
        return prepare(rule, x.shape[0], backend=self.backend)

    def _rotary(self, positions: int | Tensor) -> RotaryTable | None:
        """One table for all blocks; their own ones are the same."""
        embedding = self.layers[0].rope if self.rotary_pos_emb is None else self.rotary_pos_emb
        return embedding(positions) if isinstance(embedding, RotaryEmbedding) else None

    def _embed_global(
        self,
        global_cond: Tensor | None,
        other_cond: Tensor | None,
        other: Tensor | None,
        mask: Tensor | None,
        in_front: int,
        *,
        cached: bool,
    ) -> Tensor | None:
        """(B, 6 D) or (B, N, 6 D)."""
        if (self.global_cond_embedder is None) != (global_cond is None):
            raise ValueError("global_cond is given exactly when the transformer was made with global_cond_dim")
        if self.global_cond_embedder is None or global_cond is None:
            return None
        if global_cond.ndim == 3 and in_front:
            if cached:
                raise ValueError("with a cache, what stands in front cannot know the mean of the tokens to come; give global_cond (B, D)")
            global_cond = torch.cat((mean_of_real(global_cond, mask).expand(-1, in_front, -1), global_cond), dim=1)
        embedded = self.global_cond_embedder(global_cond)
        if other_cond is None or other is None:
            return embedded
        # Each is embedded once an item, which is also why a token that is like all others gets the same bits as they.
        return torch.where(F.pad(other, (in_front, 0))[..., None], self.global_cond_embedder(other_cond)[:, None], embedded[:, None])


def rotary_channels(dim_heads: int) -> int:
    """Channels of a head that rotate, for `RotaryEmbedding`: half, at least 32; of a narrower head, all that make pairs."""
    return max(dim_heads // 2, 32) if dim_heads >= 32 else dim_heads // 2 * 2
