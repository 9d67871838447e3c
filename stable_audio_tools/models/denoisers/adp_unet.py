"""The ADP U-Net (arXiv:2301.11757): residual units and transformers over ever fewer frames and back, with skips between.

B batch, C channels, T frames, D features, N tokens. The top has width `channels * multipliers[0]`; level i has one frame for
`factors[i]` of the level above and width `channels * multipliers[i + 1]`; the bottom is as wide as the last level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.conditioners.routing import resize_signal
from stable_audio_tools.models.transformer_params import ActivationCheckpointing
from stable_audio_tools.nn.adp import (
    TRANSFORMER_GROUPS,
    BlockSizes,
    DownLevel,
    MiddleLevel,
    Patcher,
    Surroundings,
    Unpatcher,
    UpLevel,
    time_embedding,
)
from stable_audio_tools.nn.stft_channels import STFTChannels


class ADPParams(StrictModel):
    in_channels: PositiveInt = Field(description="channels in and out")
    out_channels: PositiveInt | None = Field(default=None, description="if given, as in_channels")
    channels: PositiveInt = Field(description="unit of width, even; also the number of features of the timestep")
    multipliers: tuple[PositiveInt, ...] = Field(min_length=1, description="width at the top and of each level, in units of channels")
    factors: tuple[PositiveInt, ...] = Field(description="downsampling of each level")
    num_blocks: tuple[NonNegativeInt, ...] = Field(description="residual units of each level")
    attentions: tuple[NonNegativeInt, ...] = Field(
        min_length=1, description="transformer blocks of each level; the bottom has as many as the last number, which may be one more"
    )
    attention_heads: PositiveInt | None = Field(default=None, description="heads; default: as many as fill the width")
    attention_features: PositiveInt | None = Field(default=None, description="features of a head; default: the width over the heads")
    attention_multiplier: PositiveInt | None = Field(default=None, description="width of the feed-forward layers, in widths")
    patch_size: PositiveInt = Field(default=1, description="frames folded into channels at the top")
    resnet_groups: PositiveInt = Field(default=8, description="groups of the norms; divides the width of every level")
    kernel_multiplier_downsample: PositiveInt = Field(
        default=2, multiple_of=2, description="taps of a downsampling convolution per factor, and one more"
    )
    use_nearest_upsample: bool = Field(default=False, description="upsample by repetition, else by a transposed convolution")
    use_skip_scale: bool = Field(default=True, description="scale skips by 1 / sqrt 2")
    use_context_time: bool = Field(default=True, description="steer the residual units by the timestep")
    context_features: NonNegativeInt | None = Field(default=None, description="width of all global conditions together; absent: none")
    context_features_multiplier: PositiveInt = Field(default=4, description="width of what steers the residual units, in channels")
    context_channels: tuple[NonNegativeInt, ...] | None = Field(
        default=None, description="channels of input concatenations that enter at the top and at each level; absent: none"
    )
    context_embedding_features: NonNegativeInt | None = Field(
        default=None, description="width of the tokens for cross-attention; absent: there is no cross-attention"
    )
    use_stft: bool = Field(default=False, description="work on the signal's short-time Fourier transform")
    use_stft_context: bool = Field(default=False, description="transform what enters at the top, too")
    stft_num_fft: PositiveInt | None = Field(default=None, description="samples of a frame; needed by use_stft")
    stft_hop_length: PositiveInt | None = Field(default=256, description="samples between frames; null: a quarter of stft_num_fft")
    stft_window_length: PositiveInt | None = Field(default=None, description="samples of the window; default stft_num_fft")
    stft_length: PositiveInt | None = Field(default=None, description="the only length of signals that is taken; default: any")
    stft_use_complex: bool = Field(default=False, description="real and imaginary part, else magnitude and phase")
    activation_checkpointing: ActivationCheckpointing = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._length_problems()] or [*self._width_problems(), *self._attention_problems(), *self._stft_problems()]:
            raise ConfigError(problems)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at the top and of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks of each level and of the bottom."""
        return (*self.attentions[: len(self.factors)], self.attentions[-1])

    @property
    def beside(self) -> tuple[int, ...]:
        """Channels of input concatenations at the top and at each level."""
        given = self.context_channels or ()
        return (*given, *(0,) * (len(self.multipliers) - len(given)))

    @property
    def frame_multiple(self) -> int:
        """A number that the count of frames must be a multiple of."""
        return 1 if self.use_stft else self.reduction

    @property
    def reduction(self) -> int:
        """Frames at the input for one at the bottom."""
        return self.patch_size * math.prod(self.factors)

    @property
    def mapping_features(self) -> int | None:
        """Width of what steers the residual units; None: nothing does."""
        return self.channels * self.context_features_multiplier if self.use_context_time or self.context_features else None

    def stft(self) -> STFTChannels | None:
        if not self.use_stft or self.stft_num_fft is None:
            return None
        return STFTChannels(self.stft_num_fft, self.stft_hop_length, self.stft_window_length, use_complex=self.stft_use_complex)

    def sizes(self) -> BlockSizes:
        return BlockSizes(
            self.resnet_groups,
            self.mapping_features,
            self.context_embedding_features or None,
            self.attention_heads,
            self.attention_features,
            self.attention_multiplier,
            self.activation_checkpointing,
        )

    def _length_problems(self) -> Iterator[Problem]:
        levels = len(self.multipliers) - 1
        wanted = f"multipliers has {levels + 1} numbers, for the top and {levels} levels"
        for key in ("factors", "num_blocks"):
            if (count := len(getattr(self, key))) != levels:
                yield Problem((key,), f"{key} has {count} numbers, but {wanted}", f"give {levels}, one for each level")
        if not max(levels, 1) <= len(self.attentions) <= levels + 1:
            message = f"attentions has {len(self.attentions)} numbers, but {wanted}"
            yield Problem(("attentions",), message, f"give {levels + 1}, for each level and the bottom")
        if len(self.context_channels or ()) > levels + 1:
            yield Problem(("context_channels",), f"{len(self.context_channels or ())} numbers, but {wanted}", f"give at most {levels + 1}")

    def _width_problems(self) -> Iterator[Problem]:
        if self.out_channels not in (None, self.in_channels):
            message = f"out_channels is {self.out_channels} and in_channels {self.in_channels}, but a denoiser gives what it takes"
            yield Problem(("out_channels",), message, "remove it, or make them equal")
        if self.channels % 2:
            yield Problem(("channels",), f"channels {self.channels} is odd", f"nearest: {self.channels - 1} or {self.channels + 1}")
        if self.widths[0] % self.patch_size:
            message = f"channels x multipliers[0] = {self.widths[0]} is no multiple of patch_size {self.patch_size}"
            yield Problem(("patch_size",), message, "change patch_size, channels or multipliers")
        for width in sorted({width for width in self.widths[1:] or self.widths if width % self.resnet_groups}):
            message = f"a level has {width} channels, no multiple of resnet_groups {self.resnet_groups}"
            yield Problem(("resnet_groups",), message, f"choose a divisor, such as {math.gcd(*self.widths[1:], self.resnet_groups)}")
        for level, extra in enumerate(self.beside[1:]):
            path = ("context_channels", level + 1)
            if extra and not self.num_blocks[level]:
                yield Problem(path, f"num_blocks[{level}] is 0, so nothing takes these channels in", "set it to 1 or more, or these to 0")
            elif extra % self.resnet_groups:
                near = -(-extra // self.resnet_groups) * self.resnet_groups
                yield Problem(path, f"{extra} channels are no multiple of resnet_groups {self.resnet_groups}", f"nearest: {near}")

    def _attention_problems(self) -> Iterator[Problem]:
        at = [self.widths[min(level + 1, len(self.widths) - 1)] for level, depth in enumerate(self.depths) if depth]
        if not at:
            return
        if self.attention_heads is None and self.attention_features is None:
            yield Problem(("attention_heads",), "attentions asks for transformers, whose heads have no size", "give attention_heads")
        elif (self.attention_heads or self.attention_features or 0) > min(at) and None in (self.attention_heads, self.attention_features):
            key = "attention_heads" if self.attention_heads else "attention_features"
            yield Problem((key,), f"{key} is {getattr(self, key)}, more than the {min(at)} channels there are", f"at most {min(at)}")
        if self.attention_multiplier is None:
            yield Problem(("attention_multiplier",), "attentions asks for transformers, which need attention_multiplier", "4 is usual")
        for width in sorted({width for width in at if width % TRANSFORMER_GROUPS}):
            message = f"a transformer has {width} channels, no multiple of {TRANSFORMER_GROUPS}"
            yield Problem(("attentions",), message, f"set it to 0 there, or make channels x multipliers a multiple of {TRANSFORMER_GROUPS}")

    def _stft_problems(self) -> Iterator[Problem]:
        keys = ("stft_num_fft", "stft_hop_length", "stft_window_length", "stft_length", "stft_use_complex")
        if self.use_stft:
            yield from self._frame_problems(self.stft_num_fft)
        if self.use_stft_context and not (self.use_stft and self.beside[0]):
            yield Problem(("use_stft_context",), "has no effect without use_stft and context_channels at the top", "remove it")
        for key in keys:
            if not self.use_stft and key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].default:
                yield Problem((key,), "has no effect without use_stft", "remove it, or set use_stft true")

    def _frame_problems(self, num_fft: int | None) -> Iterator[Problem]:
        if num_fft is None:
            yield Problem(("stft_num_fft",), "use_stft needs stft_num_fft", "give the number of samples of a frame")
            return
        window, hop = self.stft_window_length or num_fft, self.stft_hop_length or num_fft // 4
        reach = (num_fft - window) // 2 + window - num_fft // 2  # samples from the middle of the last frame to the window's end
        most = min(reach + 1 - num_fft % 2, window - 1)  # a window begins with a zero
        if window > num_fft:
            yield Problem(("stft_window_length",), f"stft_window_length {window} exceeds stft_num_fft {num_fft}", f"at most {num_fft}")
        elif not 0 < hop <= most:
            message = f"windows of {window} samples every {hop} do not cover a signal to its end"
            yield Problem(("stft_hop_length",), message, f"at most {most}, or longer windows")


class ADPUNet(nn.Module):
    """Frames, with channels beside them, a mapping and a context, down through the levels and back up."""

    def __init__(self, params: ADPParams):
        super().__init__()
        self.params = params
        widths, sizes, beside = params.widths, params.sizes(), params.beside
        self.stft = params.stft()
        spread = 1 if self.stft is None else self.stft.channels
        mapping = params.mapping_features
        if mapping:
            self.to_mapping = nn.Sequential(nn.Linear(mapping, mapping), nn.GELU(), nn.Linear(mapping, mapping), nn.GELU())
        self.to_time = time_embedding(params.channels // 2, mapping) if mapping and params.use_context_time else None
        self.to_features = (
            nn.Sequential(nn.Linear(params.context_features, mapping), nn.GELU()) if mapping and params.context_features else None
        )

        at_top = params.in_channels * spread + beside[0] * (spread if params.use_stft_context else 1)
        self.to_in = Patcher(at_top, widths[0], params.patch_size, sizes)
        levels = list(zip(widths, widths[1:], params.factors, params.num_blocks, params.depths, beside[1:], strict=False))
        self.downsamples = nn.ModuleList(
            DownLevel(
                above,
                width,
                factor=factor,
                kernel_multiplier=params.kernel_multiplier_downsample,
                num_blocks=blocks,
                beside=extra,
                depth=depth,
                sizes=sizes,
            )
            for above, width, factor, blocks, depth, extra in levels
        )
        self.bottleneck = MiddleLevel(widths[-1], depth=params.depths[-1], sizes=sizes)
        self.upsamples = nn.ModuleList(
            UpLevel(
                width,
                above,
                factor=factor,
                nearest=params.use_nearest_upsample,
                num_blocks=blocks + bool(depth),
                depth=depth,
                scale_skips=params.use_skip_scale,
                sizes=sizes,
            )
            for above, width, factor, blocks, depth, _ in reversed(levels)
        )
        self.to_out = Unpatcher(widths[0], params.in_channels * spread, params.patch_size, sizes)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        features: Tensor | None = None,
        beside: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """(B, C, T) at noise levels t (B,) to (B, C, T).

        Args:
            features: (B, context_features).
            beside: (B, sum of context_channels, any length): the channels of the top, then those of each level, brought to
                the length they are needed in by the nearest frame.
            context: (B, N, context_embedding_features).
            context_mask: (B, N) bool, which tokens are real.
            hidden: filled with the output (B, frames, width) of every level.

        Raises:
            ValueError: an input is missing, too much, or of another size than the config's; or T is no multiple of `frame_multiple`.
        """
        self._check(x, features, beside, context)
        length = x.shape[-1]
        parts = () if beside is None else beside.split([count for count in self.params.beside if count], dim=1)
        entering = iter(parts)
        signals = [next(entering) if count else None for count in self.params.beside]
        around = Surroundings(self._mapping(t, features), context, context_mask)

        x = self.to_in(self._at_top(x, signals[0]), around.mapping)
        first, skips = x, []
        for level, factor, signal in zip(self.downsamples, self.params.factors, signals[1:], strict=True):
            x, outputs = level(x, around, None if signal is None else resize_signal(signal, x.shape[-1] // factor))
            skips.append(outputs)
            _note(hidden, x)
        x = self.bottleneck(x, around)
        _note(hidden, x)
        for level in self.upsamples:
            x = level(x, skips.pop(), around)
            _note(hidden, x)
        x = self.to_out(x + first, around.mapping)
        return x if self.stft is None else self.stft.decode(x[..., : self.frames(length)], length)

    def frames(self, length: int) -> int:
        """Frames that the levels see of a signal of `length` samples, before padding."""
        return length if self.stft is None else self.stft.frames(length)

    def _at_top(self, x: Tensor, signal: Tensor | None) -> Tensor:
        """What enters at the top; spectrograms are padded by silence to a length that the levels can divide."""
        if signal is not None and self.stft is not None and self.params.use_stft_context:
            signal = self.stft.encode(resize_signal(signal, x.shape[-1]))
        if self.stft is not None:
            x = self.stft.encode(x)
        if signal is not None:
            x = torch.cat((x, resize_signal(signal, x.shape[-1])), dim=1)
        return F.pad(x, (0, -x.shape[-1] % self.params.reduction))

    def _mapping(self, t: Tensor, features: Tensor | None) -> Tensor | None:
        items = [] if self.to_time is None else [self.to_time(t)]
        if self.to_features is not None:
            items.append(self.to_features(features))
        return self.to_mapping(sum(items)) if items else None

    def _check(self, x: Tensor, features: Tensor | None, beside: Tensor | None, context: Tensor | None) -> None:
        params, length = self.params, x.shape[-1]
        if x.shape[1] != params.in_channels:
            raise ValueError(f"latents have {x.shape[1]} channels, the model has in_channels {params.in_channels}")
        if length % params.frame_multiple:
            padded = -(-length // params.frame_multiple) * params.frame_multiple
            raise ValueError(f"{length} frames are no multiple of patch_size x factors = {params.frame_multiple}; pad to {padded}")
        if params.stft_length not in (None, length):
            raise ValueError(f"the model takes signals of stft_length {params.stft_length} samples, got {length}")
        given: dict[str, tuple[str, int, Any, int]] = {
            "global_cond": ("context_features", params.context_features or 0, features, -1),
            "input_concat_cond": ("context_channels", sum(params.beside), beside, 1),
            "cross_attn_cond": ("context_embedding_features", params.context_embedding_features or 0, context, -1),
        }
        for name, (key, width, value, axis) in given.items():
            got = 0 if value is None else value.shape[axis]
            if got != width:
                raise ValueError(f"{name} has width {got}, the model has {key} {width}")


def _note(hidden: list[Tensor] | None, x: Tensor) -> None:
    if hidden is not None:
        hidden.append(x.transpose(1, 2))
