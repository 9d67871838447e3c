"""Blocks of the ADP U-Nets (arXiv:2301.11757): residual units steered by a mapping, transformers over frames, levels, patches.

Parameter names and the indices inside the `Sequential`s are file format: published checkpoints name them.
B batch, C channels, T frames, D features, N context tokens. A *mapping* (B, D) holds the timestep and global features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import LearnedFrequencies
from .recompute import Recompute, recomputed

TRANSFORMER_GROUPS = 32  # of the norm in front of a transformer


@dataclass(frozen=True)
class BlockSizes:
    """What the blocks of a U-Net have in common.

    groups: of the group norms. mapping: features of the mapping, or None. context: features of the tokens attended to, or None.
    heads, head_features: of attention; where one is None, heads of that size fill the width. multiplier: feed-forward width.
    recompute: what each level computes again in the backward pass, as in `recompute.recomputed`.
    """

    groups: int = 8
    mapping: int | None = None
    context: int | None = None
    heads: int | None = None
    head_features: int | None = None
    multiplier: int | None = None
    recompute: Recompute = "none"

    def attention(self, channels: int) -> tuple[int, int]:
        """(heads, features of a head) at this width.

        Raises:
            ValueError: neither is given, or one head would have no feature.
        """
        heads, features = self.heads, self.head_features
        if heads is None and features is None:
            raise ValueError("attention needs heads or head_features")
        heads = channels // (features or 1) if heads is None else heads
        features = channels // heads if features is None and heads else features
        if not heads or not features:
            raise ValueError(f"{channels} channels do not hold one head")
        return heads, features


@dataclass(frozen=True)
class Surroundings:
    """What every block may see beside its input: mapping (B, D), context (B, N, D) and its mask (B, N), True = real."""

    mapping: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None


def time_embedding(num_frequencies: int, features: int) -> nn.Sequential:
    """Noise levels (B,) to (B, features)."""
    fourier = nn.Sequential(LearnedFrequencies(num_frequencies), nn.Linear(2 * num_frequencies + 1, features))
    return nn.Sequential(fourier, nn.GELU())


def downsampler(in_channels: int, out_channels: int, factor: int, kernel_multiplier: int) -> nn.Conv1d:
    """(B, C, T) to (B, C', T / factor), where factor divides T; kernel_multiplier is even."""
    kernel = factor * kernel_multiplier + 1
    # An odd total of padding has its larger half on the left; the same amount on the right adds a sample that no window reaches.
    return nn.Conv1d(in_channels, out_channels, kernel, stride=factor, padding=-(-(kernel - factor) // 2))


def upsampler(in_channels: int, out_channels: int, factor: int, *, nearest: bool) -> nn.Module:
    """(B, C, T) to (B, C', T * factor), by repetition and a convolution, or by a transposed convolution."""
    convolution = nn.Conv1d(in_channels, out_channels, 3, padding=1)
    if factor == 1:
        return convolution
    if nearest:
        return nn.Sequential(nn.Upsample(scale_factor=factor, mode="nearest"), convolution)
    odd = factor % 2
    return nn.ConvTranspose1d(in_channels, out_channels, 2 * factor, stride=factor, padding=(factor + odd) // 2, output_padding=odd)


class ConvBlock(nn.Module):
    """Group norm, scale and shift, SiLU, a convolution of 3 taps."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.groupnorm = nn.GroupNorm(groups, in_channels)
        self.project = nn.Conv1d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.groupnorm(x)
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return self.project(F.silu(x))


class ScaleShift(nn.Module):
    """Mapping (B, D) to scale and shift, each (B, C, 1)."""

    def __init__(self, features: int, channels: int):
        super().__init__()
        self.to_scale_shift = nn.Sequential(nn.SiLU(), nn.Linear(features, 2 * channels))

    def forward(self, mapping: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.to_scale_shift(mapping)[:, :, None].chunk(2, dim=1)
        return scale, shift


class ResnetBlock(nn.Module):
    """Two convolution blocks beside a shortcut, the second one steered by the mapping. (B, C, T) to (B, C', T)."""

    def __init__(self, in_channels: int, out_channels: int, sizes: BlockSizes):
        super().__init__()
        self.block1 = ConvBlock(in_channels, out_channels, sizes.groups)
        self.to_scale_shift = None if sizes.mapping is None else ScaleShift(sizes.mapping, out_channels)
        self.block2 = ConvBlock(out_channels, out_channels, sizes.groups)
        self.to_out = nn.Identity() if in_channels == out_channels else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, mapping: Tensor | None) -> Tensor:
        steer = None if self.to_scale_shift is None else self.to_scale_shift(mapping)
        return self.block2(self.block1(x), steer) + self.to_out(x)


class Patcher(nn.Module):
    """(B, C, T) to (B, C', T / patch_size): a residual unit, then the frames of a patch become channels."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, sizes: BlockSizes):
        super().__init__()
        self.patch_size = patch_size
        self.block = ResnetBlock(in_channels, out_channels // patch_size, replace(sizes, groups=1))

    def forward(self, x: Tensor, mapping: Tensor | None) -> Tensor:
        return self.block(x, mapping).unflatten(-1, (-1, self.patch_size)).transpose(2, 3).flatten(1, 2)


class Unpatcher(nn.Module):
    """(B, C, T) to (B, C', T * patch_size), the way back."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, sizes: BlockSizes):
        super().__init__()
        self.patch_size = patch_size
        self.block = ResnetBlock(in_channels // patch_size, out_channels, replace(sizes, groups=1))

    def forward(self, x: Tensor, mapping: Tensor | None) -> Tensor:
        return self.block(x.unflatten(1, (-1, self.patch_size)).transpose(2, 3).flatten(2), mapping)


class _Heads(nn.Module):
    """Queries, keys and values (B, N, heads * features) to the output width."""

    def __init__(self, heads: int, inner: int, features: int):
        super().__init__()
        self.heads = heads
        self.to_out = nn.Linear(inner, features)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Attention(nn.Module):
    """Attention of (B, T, D) to itself or to a context, each under its own norm.

    A context's padding is attended to as zero keys and values, since published models were trained so.
    """

    def __init__(self, features: int, heads: int, head_features: int, context_features: int | None = None):
        super().__init__()
        inner, context_features = heads * head_features, context_features or features
        self.norm = nn.LayerNorm(features)
        self.norm_context = nn.LayerNorm(context_features)
        self.to_q = nn.Linear(features, inner, bias=False)
        self.to_kv = nn.Linear(context_features, 2 * inner, bias=False)
        self.attention = _Heads(heads, inner, features)

    def forward(self, x: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None) -> Tensor:
        keys_values = self.to_kv(self.norm_context(x if context is None else context))
        if context_mask is not None:
            keys_values = keys_values * context_mask[..., None]
        return self.attention(self.to_q(self.norm(x)), *keys_values.chunk(2, dim=-1))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention where there is a context, feed-forward; each with a shortcut. (B, T, D) to (B, T, D)."""

    def __init__(self, features: int, sizes: BlockSizes):
        super().__init__()
        heads, head_features = sizes.attention(features)
        inner = features * (sizes.multiplier or 1)
        self.attention = Attention(features, heads, head_features)
        self.cross_attention = Attention(features, heads, head_features, sizes.context) if sizes.context else None
        self.feed_forward = nn.Sequential(nn.Linear(features, inner), nn.GELU(), nn.Linear(inner, features))

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        x = self.attention(x) + x
        if self.cross_attention is not None:
            x = self.cross_attention(x, around.context, around.context_mask) + x
        return self.feed_forward(x) + x


class _SwapAxes(nn.Module):
    """(B, C, T) to (B, T, C) and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Transformer(nn.Module):
    """Transformer blocks over frames. (B, C, T) to (B, C, T); C is a multiple of 32."""

    def __init__(self, channels: int, depth: int, sizes: BlockSizes):
        super().__init__()
        norm = nn.GroupNorm(TRANSFORMER_GROUPS, channels, eps=1e-6)
        self.to_in = nn.Sequential(norm, nn.Conv1d(channels, channels, 1), _SwapAxes())
        self.blocks = nn.ModuleList(TransformerBlock(channels, sizes) for _ in range(depth))
        self.to_out = nn.Sequential(_SwapAxes(), nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        x = self.to_in(x)
        for block in self.blocks:
            x = block(x, around)
        return self.to_out(x)


class Level(nn.Module):
    """A part of the U-Net that activation checkpointing treats as one."""

    def __init__(self, channels: int, depth: int, sizes: BlockSizes):
        super().__init__()
        self.recompute: Recompute = sizes.recompute
        self.transformer = Transformer(channels, depth, sizes) if depth else None


class DownLevel(Level):
    """Downsampling, then residual units and a transformer; gives the output of each, for the way up.

    beside: channels that are put beside the downsampled ones. depth: of the transformer, 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        factor: int,
        kernel_multiplier: int,
        num_blocks: int,
        beside: int,
        depth: int,
        sizes: BlockSizes,
    ):
        super().__init__(channels, depth, sizes)
        self.downsample = downsampler(in_channels, channels, factor, kernel_multiplier)
        self.blocks = nn.ModuleList(ResnetBlock(channels + (0 if i else beside), channels, sizes) for i in range(num_blocks))

    def forward(self, x: Tensor, around: Surroundings, beside: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """(B, C, T) to (B, C', T / factor), and the outputs of all units and the transformer.

        beside: (B, C, T / factor).
        """
        return recomputed(partial(self._forward, around=around, beside=beside), x, self.recompute)

    def _forward(self, x: Tensor, around: Surroundings, beside: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x = self.downsample(x)
        if beside is not None:
            x = torch.cat((x, beside), dim=1)
        outputs = []
        for block in self.blocks:
            x = block(x, around.mapping)
            outputs.append(x)
        if self.transformer is not None:
            x = self.transformer(x, around)
            outputs.append(x)
        return x, outputs


class MiddleLevel(Level):
    """Residual unit, transformer, residual unit. (B, C, T) to (B, C, T)."""

    def __init__(self, channels: int, *, depth: int, sizes: BlockSizes):
        super().__init__(channels, depth, sizes)
        self.pre_block = ResnetBlock(channels, channels, sizes)
        self.post_block = ResnetBlock(channels, channels, sizes)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        return recomputed(partial(self._forward, around=around), x, self.recompute)

    def _forward(self, x: Tensor, around: Surroundings) -> Tensor:
        x = self.pre_block(x, around.mapping)
        if self.transformer is not None:
            x = self.transformer(x, around)
        return self.post_block(x, around.mapping)


class UpLevel(Level):
    """Residual units that each see one output of the way down beside their input, a transformer, upsampling.

    num_blocks: as many as the outputs of the `DownLevel` opposite.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        factor: int,
        nearest: bool,
        num_blocks: int,
        depth: int,
        scale_skips: bool,
        sizes: BlockSizes,
    ):
        super().__init__(channels, depth, sizes)
        self.skip_scale = math.sqrt(0.5) if scale_skips else 1.0
        self.blocks = nn.ModuleList(ResnetBlock(2 * channels, channels, sizes) for _ in range(num_blocks))
        self.upsample = upsampler(channels, out_channels, factor, nearest=nearest)

    def forward(self, x: Tensor, skips: list[Tensor], around: Surroundings) -> Tensor:
        """(B, C, T) to (B, C', T * factor); `skips` are `DownLevel`'s outputs, which are met in reverse."""
        return recomputed(partial(self._forward, skips=skips, around=around), x, self.recompute)

    def _forward(self, x: Tensor, skips: list[Tensor], around: Surroundings) -> Tensor:
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat((x, skip * self.skip_scale), dim=1), around.mapping)
        if self.transformer is not None:
            x = self.transformer(x, around)
        return self.upsample(x)
