"""DiT: a transformer over latent frames (arXiv:2212.09748) with conditions by cross-attention, prefix, adaLN and input channels.

B batch, C latent channels, T frames, N = T / patch_size tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.conditioners.routing import resize_signal
from stable_audio_tools.nn.attention import AttentionKwargs, QKNorm, mean_of_real
from stable_audio_tools.nn.attention_backends import Backend
from stable_audio_tools.nn.embeddings import FourierFeatures
from stable_audio_tools.nn.feedforward import FeedForwardKwargs
from stable_audio_tools.nn.norms import NormKwargs
from stable_audio_tools.nn.recompute import Recompute
from stable_audio_tools.nn.transformer import ContinuousTransformer

from .base import BaseDenoiserConfig, Denoiser, Width

TIMESTEP_FEATURES = 256


def _as_a_word(value: object) -> object:
    """True and false are from 2026, when there was one kind."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


ActivationCheckpointing = Annotated[
    Recompute,
    BeforeValidator(_as_a_word),
    Field(
        description="computed again in the backward pass: none; selective: all but products and attention, for little compute and less "
        "memory; full: whole blocks, for a third more compute and far less memory. true is full, false none",
    ),
]


class AttentionParams(StrictModel):
    qk_norm: QKNorm = Field(default="none", description="norm of queries and keys: none, l2, ln (layer norm) or dyt (DynamicTanh)")
    differential: bool = Field(default=False, description="subtract a second attention")
    feat_scale: bool = Field(default=False, description="learned gains of the output's mean over tokens and of the rest")
    backend: Backend = Field(
        default="auto", description="kernel: sdpa, flash (no padding masks), flex (trains on a GPU only), or auto, which chooses"
    )

    def kwargs(self) -> AttentionKwargs:
        kwargs: AttentionKwargs = {"qk_norm": self.qk_norm, "differential": self.differential}
        return {**kwargs, "feat_scale": self.feat_scale, "backend": self.backend}


class FeedForwardParams(StrictModel):
    mult: float = Field(default=4, gt=0, description="inner width as a multiple of embed_dim")
    no_bias: bool = Field(default=False, description="no biases, except in the gate")
    glu: bool = Field(default=True, description="gated (SwiGLU), else plain SiLU")
    use_conv: bool = Field(default=False, description="convolutions over tokens for the linear layers, the gate excepted")
    conv_kernel_size: PositiveInt = Field(default=3, description="of those convolutions, odd")
    zero_init_output: bool | None = Field(default=None, description="default: as zero_init_branch_outputs")

    @model_validator(mode="after")
    def _kernel_fits(self) -> Self:
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd, got {self.conv_kernel_size}")
        if "conv_kernel_size" in self.model_fields_set and not self.use_conv:
            raise ValueError("conv_kernel_size has no effect without use_conv; set it true or remove the size")
        return self

    def kwargs(self) -> FeedForwardKwargs:
        kwargs: FeedForwardKwargs = {"mult": self.mult, "no_bias": self.no_bias, "glu": self.glu}
        kwargs |= {"use_conv": self.use_conv, "conv_kernel_size": self.conv_kernel_size}
        if self.zero_init_output is not None:
            kwargs["zero_init_output"] = self.zero_init_output
        return kwargs


class NormParams(StrictModel):
    bias: bool = Field(default=False, description="learn a bias")
    fix_scale: bool = Field(default=False, description="no learned gain")
    force_fp32: bool = Field(default=False, description="compute in float32 under any precision")
    eps: float = Field(default=1e-5, gt=0)

    def kwargs(self) -> NormKwargs:
        return {"bias": self.bias, "fix_scale": self.fix_scale, "force_fp32": self.force_fp32, "eps": self.eps}


class DiTParams(StrictModel):
    io_channels: PositiveInt = Field(default=32, description="latent channels in and out")
    patch_size: PositiveInt = Field(default=1, description="frames folded into one token")
    embed_dim: PositiveInt = Field(default=768, description="width of a token")
    depth: PositiveInt = Field(default=12, description="number of blocks")
    num_heads: PositiveInt = Field(default=8, description="attention heads of embed_dim / num_heads channels")
    cond_token_dim: NonNegativeInt = Field(default=0, description="width of cross-attention conditions; 0: no cross-attention")
    project_cond_tokens: bool = Field(
        default=True, description="bring them to embed_dim; false: keep their width, so that keys and values have fewer heads"
    )
    mask_condition_padding: bool = Field(
        default=False, description="never attend to padding tokens of a prompt; published models do, as zero vectors"
    )
    global_cond_dim: NonNegativeInt = Field(default=0, description="width of all global conditions together; 0: there are none")
    project_global_cond: bool = Field(default=True, description="bring it to embed_dim; false asks that it is so already")
    global_cond_type: Literal["prepend", "adaLN"] = Field(
        default="prepend", description="global conditions and timestep as a token in front, or as scale, shift and gate of each block"
    )
    input_concat_dim: NonNegativeInt = Field(default=0, description="channels of all input concatenations together; 0: there are none")
    prepend_cond_dim: NonNegativeInt = Field(default=0, description="width of prepended conditions; 0: there are none")
    timestep_cond_type: Literal["global", "input_concat"] = Field(
        default="global", description="the timestep joins the global conditions, or the input as channels"
    )
    timestep_embed_dim: PositiveInt | None = Field(default=None, description="channels of the timestep for timestep_cond_type input_concat")
    transformer_type: Literal["continuous_transformer"] = Field(
        default="continuous_transformer", description="accepted, no effect: there is one"
    )
    final_cross_attn_ix: int = Field(default=-1, ge=-1, description="last block with cross-attention; -1: all have it")
    rotary_pos_emb: bool = Field(default=True, description="rotary positions")
    zero_init_branch_outputs: bool = Field(default=True, description="blocks start as the identity")
    conformer: bool = Field(default=False, description="a convolution module in each block")
    use_sinusoidal_emb: bool = Field(default=False, description="add sinusoidal positions")
    use_abs_pos_emb: bool = Field(default=False, description="add learned positions")
    abs_pos_emb_max_length: PositiveInt = Field(default=10000, description="number of learned positions")
    num_memory_tokens: NonNegativeInt = Field(default=0, description="learned tokens in front of the sequence")
    sliding_window: tuple[int, int] | None = Field(default=None, description="tokens seen on the left and right; -1: all on that side")
    causal: bool = Field(default=False, description="a token sees itself and earlier ones")
    causal_cross_attention: bool = Field(
        default=True, description="with causal, token i sees the first i + 1 condition tokens only, as published code does; false: all"
    )
    remove_norms: bool = Field(default=False, description="DynamicTanh for layer norms")
    add_rope: bool = Field(default=False, description="a rotary table in each block, when rotary_pos_emb is false")
    layer_scale: bool = Field(default=False, description="learned gains of the branches, from 1e-5; they are then not zero-initialised")
    attn_kwargs: AttentionParams = Field(default_factory=AttentionParams)
    ff_kwargs: FeedForwardParams = Field(default_factory=FeedForwardParams)
    norm_kwargs: NormParams = Field(default_factory=NormParams)
    activation_checkpointing: ActivationCheckpointing = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._width_problems(), *self._idle_settings()]:
            raise ConfigError(problems)
        return self

    @property
    def dim_heads(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def context_dim(self) -> int:
        """Width of the tokens that blocks attend to."""
        return self.embed_dim if self.project_cond_tokens else self.cond_token_dim

    @property
    def input_channels(self) -> int:
        """Channels of latents and all that is put beside them."""
        timestep = self.timestep_embed_dim or 0 if self.timestep_cond_type == "input_concat" else 0
        return self.io_channels + self.input_concat_dim + timestep

    def _width_problems(self) -> Iterator[Problem]:
        width, heads, cond = self.embed_dim, self.num_heads, self.cond_token_dim
        if width % heads:
            near = sorted({max(heads, width // heads * heads), (width // heads + 1) * heads})
            yield Problem(
                ("embed_dim",), f"embed_dim {width} is no multiple of num_heads {heads}", f"nearest: {' or '.join(map(str, near))}"
            )
        elif cond and not self.project_cond_tokens and (cond % self.dim_heads or width % cond):
            message = (
                f"project_cond_tokens is false, so cond_token_dim {cond} must hold whole heads of {self.dim_heads} channels "
                f"and divide embed_dim {width}"
            )
            yield Problem(("cond_token_dim",), message, 'set "project_cond_tokens": true, or change cond_token_dim')
        if not self.project_global_cond and self.global_cond_dim not in (0, width):
            message = f"project_global_cond is false, so global_cond_dim {self.global_cond_dim} must equal embed_dim {width}"
            yield Problem(("global_cond_dim",), message, 'set "project_global_cond": true')
        if self.sliding_window is not None and min(self.sliding_window) < -1:
            yield Problem(
                ("sliding_window",), f"expected two numbers from -1 up, got {list(self.sliding_window)}", "-1 means: all on that side"
            )
        if self.final_cross_attn_ix >= self.depth:
            message = f"final_cross_attn_ix {self.final_cross_attn_ix} is none of the {self.depth} blocks (depth), which count from 0"
            yield Problem(("final_cross_attn_ix",), message, "-1 means: all of them")

    def _idle_settings(self) -> Iterator[Problem]:
        """Settings that could not take effect."""
        given = self.model_fields_set
        by_input = self.timestep_cond_type == "input_concat"
        if by_input and self.timestep_embed_dim is None:
            yield Problem(("timestep_embed_dim",), "timestep_cond_type input_concat needs timestep_embed_dim", "give a number of channels")
        if not by_input and self.timestep_embed_dim is not None:
            yield Problem(("timestep_embed_dim",), "has no effect with timestep_cond_type global", 'remove it, or set "input_concat"')
        if by_input and self.global_cond_type == "adaLN" and not self.global_cond_dim:
            yield Problem(
                ("global_cond_type",), "adaLN has nothing to act on: no global_cond_dim, and the timestep goes another way", "use prepend"
            )
        if self.use_sinusoidal_emb and self.use_abs_pos_emb:
            yield Problem(("use_abs_pos_emb",), "use_sinusoidal_emb and use_abs_pos_emb exclude each other", "keep one")
        if "abs_pos_emb_max_length" in given and not self.use_abs_pos_emb:
            yield Problem(("abs_pos_emb_max_length",), "has no effect without use_abs_pos_emb", "set it true, or remove the length")
        if self.add_rope and self.rotary_pos_emb:
            yield Problem(("add_rope",), "has no effect while rotary_pos_emb is true", 'set "rotary_pos_emb": false, or remove it')
        if self.remove_norms and self.norm_kwargs.model_fields_set and not self.conformer:
            yield Problem(("norm_kwargs",), "has no effect: remove_norms leaves no layer norm", "remove one of the two")
        if self.mask_condition_padding and not (self.cond_token_dim or self.prepend_cond_dim):
            yield Problem(("mask_condition_padding",), "has no effect without cond_token_dim or prepend_cond_dim", "remove it")
        elif self.mask_condition_padding and self.attn_kwargs.backend == "flash":
            yield Problem(
                ("attn_kwargs", "backend"), "flash takes no mask, which mask_condition_padding needs", 'set it to "auto", "sdpa" or "flex"'
            )
        if self.attn_kwargs.backend == "flash" and self.causal and self.causal_cross_attention and self.cond_token_dim:
            yield Problem(
                ("attn_kwargs", "backend"), "flash has no causal cross-attention", 'set it to "auto", or "causal_cross_attention" to false'
            )
        if "causal_cross_attention" in given and not (self.causal and self.cond_token_dim):
            yield Problem(("causal_cross_attention",), "has no effect without causal and cond_token_dim", "remove it")


class DiTConfig(BaseDenoiserConfig):
    """A diffusion transformer."""

    type: Literal["dit"]
    config: DiTParams = Field(default_factory=DiTParams)

    @property
    def io_channels(self) -> int:
        return self.config.io_channels

    @property
    def frame_multiple(self) -> tuple[str, int]:
        return "patch_size", self.config.patch_size

    def widths(self) -> Mapping[str, Width]:
        params = self.config
        return {
            "cross_attention_cond_ids": Width("cond_token_dim", params.cond_token_dim, summed=False),
            "global_cond_ids": Width("global_cond_dim", params.global_cond_dim, summed=True),
            "input_concat_ids": Width("input_concat_dim", params.input_concat_dim, summed=True),
            "prepend_cond_ids": Width("prepend_cond_dim", params.prepend_cond_dim, summed=False),
        }

    def build(self) -> DiTDenoiser:
        return DiTDenoiser(DiffusionTransformer(self.config))


class DiTDenoiser(Denoiser):
    """The network under the name `model`, where published checkpoints have it."""

    def __init__(self, model: DiffusionTransformer):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **inputs: Any) -> Tensor:
        return self.model(x, t, **inputs)


class DiffusionTransformer(nn.Module):
    """Latents, with conditions beside and in front of them, as tokens through the transformer and back.

    What the convolutions at both ends add is zero at first.
    """

    def __init__(self, params: DiTParams):
        super().__init__()
        self.params = params
        width = params.embed_dim
        channels, patch = params.input_channels, params.patch_size

        self.timestep_features = FourierFeatures(TIMESTEP_FEATURES)
        self.to_timestep_embed = _mlp(TIMESTEP_FEATURES, params.timestep_embed_dim or width, bias=True)
        self.to_cond_embed = _mlp(params.cond_token_dim, params.context_dim) if params.cond_token_dim else None
        self.to_global_embed = _mlp(params.global_cond_dim, width) if params.global_cond_dim else None
        self.to_prepend_embed = _mlp(params.prepend_cond_dim, width) if params.prepend_cond_dim else None
        self.preprocess_conv = _zero(nn.Conv1d(channels, channels, 1, bias=False))
        self.postprocess_conv = _zero(nn.Conv1d(params.io_channels, params.io_channels, 1, bias=False))
        self.transformer = ContinuousTransformer(
            width,
            params.depth,
            dim_in=channels * patch,
            dim_out=params.io_channels * patch,
            dim_heads=params.dim_heads,
            cross_attend=params.cond_token_dim > 0,
            cond_token_dim=params.context_dim if params.cond_token_dim else None,
            final_cross_attn_ix=params.final_cross_attn_ix,
            global_cond_dim=width if params.global_cond_type == "adaLN" else None,
            causal=params.causal,
            causal_cross_attention=params.causal_cross_attention,
            rotary_pos_emb=params.rotary_pos_emb,
            zero_init_branch_outputs=params.zero_init_branch_outputs,
            conformer=params.conformer,
            use_sinusoidal_emb=params.use_sinusoidal_emb,
            use_abs_pos_emb=params.use_abs_pos_emb,
            abs_pos_emb_max_length=params.abs_pos_emb_max_length,
            num_memory_tokens=params.num_memory_tokens,
            sliding_window=params.sliding_window,
            remove_norms=params.remove_norms,
            add_rope=params.add_rope,
            layer_scale=params.layer_scale,
            attn_kwargs=params.attn_kwargs.kwargs(),
            ff_kwargs=params.ff_kwargs.kwargs(),
            norm_kwargs=params.norm_kwargs.kwargs(),
            activation_checkpointing=params.activation_checkpointing,
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
        cross_attn_dropped: Tensor | None = None,
        global_cond: Tensor | None = None,
        input_concat_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        exit_layer_ix: int | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """As `Denoiser.forward`. Features behind a layer include prepended tokens; the null of dropped ones is the zeros they are.

        Args:
            t: (B,), or (B, T) where frames differ; the frames of a patch then share the mean of theirs.
            positions: (N,) or (B, N), where the tokens stand, also between frames; default: 0, 1, ...

        Raises:
            ValueError: a condition that the config asks for is missing, or one that it has no place for is given; T is no
                multiple of the patch size; or frames of different timesteps meet a timestep that is one prepended token.
        """
        params = self.params
        self._check(
            x, cross_attn_cond=cross_attn_cond, global_cond=global_cond, input_concat_cond=input_concat_cond, prepend_cond=prepend_cond
        )
        timestep = self._timestep(t, x, mask)
        context = None if self.to_cond_embed is None else self.to_cond_embed(cross_attn_cond)
        vector = None if self.to_global_embed is None else self.to_global_embed(global_cond)
        if params.timestep_cond_type == "global":
            vector = timestep if vector is None else timestep + (vector if timestep.ndim == 2 else vector[:, None])
        in_front = [] if self.to_prepend_embed is None else [self.to_prepend_embed(prepend_cond)]
        if params.global_cond_type == "prepend" and vector is not None:
            in_front.append(vector[:, None])
            vector = None

        features = self.transformer(
            self._to_tokens(x, input_concat_cond, timestep if params.timestep_cond_type == "input_concat" else None, mask),
            context=context,
            context_mask=cross_attn_mask if params.mask_condition_padding else None,
            global_cond=vector,
            prepend_embeds=torch.cat(in_front, dim=1) if in_front else None,
            prepend_mask=self._prepend_mask(in_front, prepend_cond_mask),
            mask=None if mask is None else mask.unflatten(-1, (-1, params.patch_size)).any(dim=-1),
            positions=positions,
            exit_layer_ix=exit_layer_ix,
            hidden=hidden,
        )
        if exit_layer_ix is not None:
            return features
        out = self._from_tokens(features[:, sum(part.shape[1] for part in in_front) :])
        return out + self.postprocess_conv(out)

    def _timestep(self, t: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, E); of timesteps per frame (B, T, E) where they are input channels, else (B, N, D)."""
        params = self.params
        if t.ndim == 2:
            if t.shape[1] != x.shape[-1]:
                raise ValueError(f"timesteps for {t.shape[1]} frames, but there are {x.shape[-1]}")
            if params.timestep_cond_type == "global" and params.global_cond_type == "prepend":
                raise ValueError(
                    "timesteps per frame do not fit into the one token of global_cond_type prepend; "
                    'set "global_cond_type": "adaLN", or "timestep_cond_type": "input_concat"'
                )
            if params.timestep_cond_type == "global" and params.patch_size > 1:
                t, real = (frames.unflatten(-1, (-1, params.patch_size)).flatten(0, 1) for frames in (t, _real_frames(x, mask)))
                t = mean_of_real(t[..., None], real).reshape(x.shape[0], -1)
        return self.to_timestep_embed(self.timestep_features(t))

    def _to_tokens(self, x: Tensor, input_concat_cond: Tensor | None, timestep: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, N, channels * patch_size); in a token, all frames of a channel stand together."""
        beside = [] if input_concat_cond is None else [resize_signal(input_concat_cond, x.shape[-1])]
        if timestep is not None:
            beside.append(timestep[:, :, None].expand(-1, -1, x.shape[-1]) if timestep.ndim == 2 else timestep.mT)
        if beside:
            x = torch.cat((x, *beside), dim=1)
        if mask is not None and self.params.patch_size > 1:
            # Padding may share a token with real frames.
            x = x.masked_fill(~mask[:, None], 0)
        x = x + self.preprocess_conv(x)
        return x.unflatten(-1, (-1, self.params.patch_size)).transpose(1, 2).flatten(2)

    def _from_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N, C * patch_size) to (B, C, T)."""
        return tokens.unflatten(-1, (-1, self.params.patch_size)).transpose(1, 2).flatten(2)

    def _prepend_mask(self, in_front: list[Tensor], prepend_cond_mask: Tensor | None) -> Tensor | None:
        """Of everything in front; the global token is always real."""
        if not self.params.mask_condition_padding or prepend_cond_mask is None:
            return None
        real = [prepend_cond_mask, *(part.new_ones(part.shape[:2], dtype=torch.bool) for part in in_front[1:])]
        return torch.cat(real, dim=1)

    def _check(self, x: Tensor, **given: Tensor | None) -> None:
        params, patch = self.params, self.params.patch_size
        if x.shape[1] != params.io_channels:
            raise ValueError(f"latents have {x.shape[1]} channels, the model has io_channels {params.io_channels}")
        if x.shape[-1] % patch:
            raise ValueError(
                f"{x.shape[-1]} latent frames are no multiple of patch_size {patch}; pad to {-(-x.shape[-1] // patch) * patch}"
            )
        widths = {
            "cross_attn_cond": ("cond_token_dim", params.cond_token_dim, -1),
            "global_cond": ("global_cond_dim", params.global_cond_dim, -1),
            "input_concat_cond": ("input_concat_dim", params.input_concat_dim, 1),
            "prepend_cond": ("prepend_cond_dim", params.prepend_cond_dim, -1),
        }
        for name, (key, width, axis) in widths.items():
            value = given[name]
            got = 0 if value is None else value.shape[axis]
            if got != width:
                raise ValueError(f"{name} has width {got}, the model has {key} {width}")


def _real_frames(x: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(x[:, 0], dtype=torch.bool) if mask is None else mask


def _mlp(dim: int, dim_out: int, *, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim_out, bias=bias), nn.SiLU(), nn.Linear(dim_out, dim_out, bias=bias))


def _zero(layer: nn.Conv1d) -> nn.Conv1d:
    nn.init.zeros_(layer.weight)
    return layer
