"""The transformer of denoisers and language models: blocks over tokens, with conditions by prefix, cross-attention or adaLN.

B batch, N tokens, M context tokens, D width. Token masks are (B, N) bool, True = real. A masked token reaches no other one:
neither through attention nor through a convolution; its own output is arbitrary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention, AttentionKwargs
from .embeddings import AbsolutePositions, RotaryEmbedding, RotaryTable, SinusoidalPositions
from .feedforward import ConformerModule, FeedForward, FeedForwardKwargs
from .norms import DynamicTanh, LayerNorm, LayerScale, NormKwargs


class Modulation(NamedTuple):
    """Scale, shift and gate of one branch, each (B, 1, D) or absent: adaptive layer norm (arXiv:2212.09748, section 3.2).

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
        global_cond: adaLN: scale, shift and gate self-attention and feed-forward by a (B, 6 D) condition.
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
            self.cross_attn = Attention(dim, dim_heads=dim_heads, dim_context=dim_context or dim, zero_init_output=zero_init, **attn_kwargs)
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
        context_mask: Tensor | None = None,
        global_cond: Tensor | None = None,
        mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary: RotaryTable | None = None,
    ) -> Tensor:
        """(B, N, D) to (B, N, D).

        Args:
            context: (B, M, dim_context), exactly when the block has cross-attention.
            context_mask: bool that expands to (B, H, N, M).
            global_cond: (B, 6 D), exactly when the block was made with `global_cond`.
            mask: (B, N), which tokens convolutions may see.
            attention_mask: bool that expands to (B, H, N, N), as `self_attention_mask` makes.
            rotary: table of the N positions.
        """
        if rotary is None and self.rope is not None:
            rotary = self.rope(x.shape[1])
        attn, ff = self._modulations(global_cond)

        branch = attn.before(self.pre_norm(x))
        x = x + self.self_attn_scale(attn.after(self.self_attn(branch, mask=attention_mask, rotary=rotary)))
        if self.cross_attend:
            x = x + self.cross_attn_scale(self.cross_attn(self.cross_attend_norm(x), context, mask=context_mask))
        if self.conformer is not None:
            x = x + self.conformer_scale(self.conformer(x, mask))
        return x + self.ff_scale(ff.after(self.ff(ff.before(self.ff_norm(x)), mask)))

    def _modulations(self, global_cond: Tensor | None) -> tuple[Modulation, Modulation]:
        """Of self-attention and of the feed-forward network."""
        if (self.to_scale_shift_gate is None) != (global_cond is None):
            raise ValueError("a global condition is given exactly when the block was made with global_cond")
        if self.to_scale_shift_gate is None or global_cond is None:
            return Modulation(), Modulation()
        parts = (self.to_scale_shift_gate + global_cond)[:, None].chunk(6, dim=-1)
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
        activation_checkpointing: recompute each block in the backward pass: less memory, a third more compute.

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
        rotary_pos_emb: bool = True,
        zero_init_branch_outputs: bool = True,
        conformer: bool = False,
        use_sinusoidal_emb: bool = False,
        use_abs_pos_emb: bool = False,
        abs_pos_emb_max_length: int = 10000,
        num_memory_tokens: int = 0,
        sliding_window: tuple[int, int] | None = None,
        remove_norms: bool = False,
        add_rope: bool = False,
        layer_scale: bool = False,
        attn_kwargs: AttentionKwargs | None = None,
        ff_kwargs: FeedForwardKwargs | None = None,
        norm_kwargs: NormKwargs | None = None,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        self.num_memory_tokens, self.sliding_window = num_memory_tokens, sliding_window
        self.activation_checkpointing = activation_checkpointing
        self.masks_tokens = not (attn_kwargs or {}).get("feat_scale", False)

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

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        global_cond: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        mask: Tensor | None = None,
        exit_layer_ix: int | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """(B, N, dim_in) to (B, P + N, dim_out), the P prepended tokens included.

        Args:
            context: (B, M, cond_token_dim) for cross-attention.
            context_mask: (B, M), which of its tokens may be attended.
            global_cond: (B, global_cond_dim) for adaLN.
            prepend_embeds: (B, P, D) tokens to put in front.
            prepend_mask: (B, P), which of them are real.
            mask: (B, N), which tokens of x are real.
            exit_layer_ix: return the output (B, P + N, D) of this block.
            hidden: filled with the output (B, memory + P + N, D) of each block.

        Raises:
            ValueError: no such block, a mask that cannot be honoured, or more tokens than learned positions.
        """
        if exit_layer_ix is not None and not 0 <= exit_layer_ix < len(self.layers):
            raise ValueError(f"exit_layer_ix {exit_layer_ix} is none of the {len(self.layers)} layers, which count from 0")
        x, mask = self._put_in_front(self.project_in(x), prepend_embeds, mask, prepend_mask)
        if self.pos_emb is not None:
            x = x + self.pos_emb(x.shape[1])
        shared = {
            "context_mask": None if context_mask is None else context_mask[:, None, None, :],
            "global_cond": self._embed_global(global_cond),
            "mask": mask,
            "attention_mask": self_attention_mask(x.shape[1], mask=mask, window=self.sliding_window, device=x.device),
            "rotary": None if self.rotary_pos_emb is None else self.rotary_pos_emb(x.shape[1]),
        }
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            arguments = {**shared, "context": context if layer.cross_attend else None}
            x = checkpoint(partial(layer, **arguments), x, use_reentrant=False) if recompute else layer(x, **arguments)
            if hidden is not None:
                hidden.append(x)
            if index == exit_layer_ix:
                return x[:, self.num_memory_tokens :]
        return self.project_out(x[:, self.num_memory_tokens :])

    def _put_in_front(
        self, x: Tensor, prepended: Tensor | None, mask: Tensor | None, prepend_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Memory tokens, prepended tokens, x; and the mask of them all where any has one."""
        batch = x.shape[0]
        tokens = [(x, mask)]
        if prepended is not None:
            tokens.insert(0, (prepended, prepend_mask))
        if self.num_memory_tokens:
            tokens.insert(0, (self.memory_tokens.expand(batch, -1, -1), None))
        if mask is None and prepend_mask is None:
            return torch.cat([part for part, _ in tokens], dim=1) if len(tokens) > 1 else x, None
        if not self.masks_tokens:
            raise ValueError("attention with feat_scale averages over all tokens and cannot honour a mask")
        masks = [torch.ones(part.shape[:2], dtype=torch.bool, device=x.device) if real is None else real for part, real in tokens]
        return torch.cat([part for part, _ in tokens], dim=1), torch.cat(masks, dim=1)

    def _embed_global(self, global_cond: Tensor | None) -> Tensor | None:
        if (self.global_cond_embedder is None) != (global_cond is None):
            raise ValueError("global_cond is given exactly when the transformer was made with global_cond_dim")
        return None if self.global_cond_embedder is None else self.global_cond_embedder(global_cond)


def rotary_channels(dim_heads: int) -> int:
    """Channels of a head that rotate: half, at least 32, at most all of them (and an even number)."""
    return min(max(dim_heads // 2, 32), dim_heads) // 2 * 2


def self_attention_mask(
    length: int, *, mask: Tensor | None = None, window: tuple[int, int] | None = None, device: torch.device | None = None
) -> Tensor | None:
    """Which tokens each of `length` tokens may attend to, as bool that expands to (B, H, N, N); None: all of them.

    Args:
        mask: (B, N), which tokens are real.
        window: tokens seen to the left and to the right; -1: all on that side.
    """
    allowed = None if mask is None else mask[:, None, None, :]
    if window is not None and window != (-1, -1):
        left, right = (length if side < 0 else side for side in window)
        position = torch.arange(length, device=device)
        offset = position[None, :] - position[:, None]
        near = (offset >= -left) & (offset <= right)
        allowed = near if allowed is None else allowed & near
    return allowed
