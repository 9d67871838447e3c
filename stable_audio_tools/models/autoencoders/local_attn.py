"""A codec of transformers alone: windowed attention at each rate, and linear layers that trade frames for channels in between.

The encoder projects samples to the first width; each stage runs its transformer and then merges `ratio` frames into one. The decoder's
stages first split each frame, then run theirs. B batch, C channels, T samples or frames, D width of a stage.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.attention import Attention
from stable_audio_tools.nn.attention_backends import Backend
from stable_audio_tools.nn.embeddings import RotaryEmbedding, RotaryTable
from stable_audio_tools.nn.feedforward import FeedForward
from stable_audio_tools.nn.norms import LayerNorm
from stable_audio_tools.nn.transformer import rotary_channels
from stable_audio_tools.nn.visibility import Visibility, Window

from .base import BaseDecoderConfig, BaseEncoderConfig
from .sizes import repeat_absent, uneven_lists

PER_STAGE = {"heads": 12, "depths": 3, "ratios": 2}  # what a list holds for each stage where it is absent


class LocalAttentionParams(StrictModel):
    """What encoder and decoder share; lists are in the order of computation, one entry per stage."""

    in_channels: PositiveInt
    out_channels: PositiveInt
    embed_dims: tuple[PositiveInt, ...] = Field(min_length=1, description="width of each stage")
    heads: tuple[PositiveInt, ...] = Field(default=(12,) * 4, description="attention heads of each stage; absent: 12 in every stage")
    depths: tuple[NonNegativeInt, ...] = Field(default=(3,) * 4, description="transformer layers of each stage; absent: 3 in every stage")
    ratios: tuple[PositiveInt, ...] = Field(default=(2,) * 4, description="resampling of each stage; absent: 2 in every stage")
    local_attn_window_size: PositiveInt = Field(default=64, description="frames that a frame sees, itself among them and in the middle")
    causal: bool = Field(default=False, description="the window ends at the frame itself")
    ff_mult: float = Field(default=2, gt=0, description="inner width of the feed-forward network, in widths")
    checkpointing: bool = Field(default=False, description="recompute each layer in the backward pass: less memory, more work")
    backend: Backend = Field(default="auto", description="attention kernel")

    @model_validator(mode="after")
    def _absent_lists_fit(self) -> Self:
        repeat_absent(self, "embed_dims", PER_STAGE)
        return self

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        problems = [*uneven_lists(self, "embed_dims", *PER_STAGE)]
        for index, (width, heads) in enumerate(zip(self.embed_dims, self.heads, strict=False)):
            if width % heads:
                message = f"embed_dims[{index}] is {width}, which {heads} heads do not divide"
                problems.append(Problem(("embed_dims", index), message, f"make it a multiple of {heads}, or change heads[{index}]", width))
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def stages(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Of each stage: width before it, width, heads, depth, ratio."""
        before = (self.embed_dims[0], *self.embed_dims[:-1])
        return tuple(zip(before, self.embed_dims, self.heads, self.depths, self.ratios, strict=True))

    @property
    def window(self) -> Window:
        size = self.local_attn_window_size
        return (size - 1, 0) if self.causal else ((size - 1) // 2, size // 2)


class LocalAttentionEncoderParams(LocalAttentionParams):
    embed_dims: tuple[PositiveInt, ...] = Field(default=(96, 192, 384, 768), min_length=1, description="width of each stage")


class LocalAttentionDecoderParams(LocalAttentionParams):
    embed_dims: tuple[PositiveInt, ...] = Field(default=(768, 384, 192, 96), min_length=1, description="width of each stage")


class LocalAttentionEncoderConfig(BaseEncoderConfig):
    out_channels_key = "out_channels"
    ratio_key = "ratios"

    type: Literal["local_attn"]
    config: LocalAttentionEncoderParams

    @property
    def length_multiple(self) -> int:
        return self.downsampling_ratio

    def make(self) -> LocalAttentionEncoder:
        return LocalAttentionEncoder(self.config)


class LocalAttentionDecoderConfig(BaseDecoderConfig):
    in_channels_key = "in_channels"
    ratio_key = "ratios"

    type: Literal["local_attn"]
    config: LocalAttentionDecoderParams

    def make(self) -> LocalAttentionDecoder:
        return LocalAttentionDecoder(self.config)


class LocalAttentionEncoder(nn.Module):
    """(B, in_channels, T) -> (B, out_channels, T / prod(ratios)).

    Raises:
        ValueError: the ratios do not divide T.
    """

    def __init__(self, params: LocalAttentionEncoderParams):
        super().__init__()
        self.ratio = math.prod(params.ratios)
        self.layers = nn.Sequential(*(DownsamplingStage(*stage, params) for stage in params.stages))
        self.project_in = nn.Linear(params.in_channels, params.embed_dims[0], bias=False)
        self.project_out = nn.Linear(params.embed_dims[-1], params.out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.ratio:
            raise ValueError(f"{x.shape[-1]} samples are no multiple of {self.ratio}, the product of the ratios: pad them")
        return self.project_out(self.layers(self.project_in(x.mT))).mT


class LocalAttentionDecoder(nn.Module):
    """(B, in_channels, T) -> (B, out_channels, T * prod(ratios))."""

    def __init__(self, params: LocalAttentionDecoderParams):
        super().__init__()
        self.layers = nn.Sequential(*(UpsamplingStage(*stage, params) for stage in params.stages))
        self.project_in = nn.Linear(params.in_channels, params.embed_dims[0], bias=False)
        self.project_out = nn.Linear(params.embed_dims[-1], params.out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(self.layers(self.project_in(x.mT))).mT


class DownsamplingStage(nn.Module):
    """(B, T, width before) -> (B, T / ratio, D); the channels of merged frames take turns."""

    def __init__(self, before: int, width: int, heads: int, depth: int, ratio: int, params: LocalAttentionParams):
        super().__init__()
        self.ratio = ratio
        self.transformer = LocalTransformer(width, heads, depth, params)
        self.project_in = _projection(before, width)
        self.project_down = nn.Linear(width * ratio, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transformer(self.project_in(x))
        return self.project_down(x.unflatten(1, (-1, self.ratio)).mT.flatten(2))


class UpsamplingStage(nn.Module):
    """(B, T, width before) -> (B, T * ratio, D), the order of channels as in `DownsamplingStage`."""

    def __init__(self, before: int, width: int, heads: int, depth: int, ratio: int, params: LocalAttentionParams):
        super().__init__()
        self.ratio = ratio
        self.transformer = LocalTransformer(width, heads, depth, params)
        self.project_in = _projection(before, width)
        self.project_up = nn.Linear(width, width * ratio, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_up(self.project_in(x))
        return self.transformer(x.unflatten(2, (-1, self.ratio)).mT.flatten(1, 2))


class LocalTransformer(nn.Module):
    """Layers over frames (B, T, D), in a sliding window, with rotary positions."""

    def __init__(self, width: int, heads: int, depth: int, params: LocalAttentionParams):
        super().__init__()
        self.window, self.checkpointing = params.window, params.checkpointing
        self.rotary_pos_emb = RotaryEmbedding(rotary_channels(width // heads))
        self.layers = nn.ModuleList(LocalLayer(width, heads, params) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        visibility = Visibility(length, length, window=self.window, device=x.device)
        rotary = self.rotary_pos_emb(length)
        recompute = self.checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            run = partial(layer, visibility=visibility, rotary=rotary)
            x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False) if recompute else run(x)
        return x


class LocalLayer(nn.ModuleList):
    """Self-attention, then a feed-forward network, both residual; the hole is where a cross-attention had its index."""

    def __init__(self, width: int, heads: int, params: LocalAttentionParams):
        attention = Attention(width, dim_heads=width // heads, backend=params.backend)
        feedforward = FeedForward(width, mult=params.ff_mult, no_bias=True)
        super().__init__([LayerNorm(width), attention, nn.Identity(), LayerNorm(width), feedforward])

    def forward(self, x: Tensor, visibility: Visibility, rotary: RotaryTable) -> Tensor:
        attention_norm, attention, _, feedforward_norm, feedforward = self
        x = x + attention(attention_norm(x), mask=visibility, rotary=rotary)
        return x + feedforward(feedforward_norm(x))


def _projection(before: int, width: int) -> nn.Module:
    return nn.Identity() if before == width else nn.Linear(before, width, bias=False)
