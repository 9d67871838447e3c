"""What configs say about a transformer over tokens, with the rules that its owners, denoisers and language models, share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.attention import AttentionKwargs, QKNorm
from stable_audio_tools.nn.attention_backends import Backend
from stable_audio_tools.nn.feedforward import FeedForwardKwargs
from stable_audio_tools.nn.norms import NormKwargs
from stable_audio_tools.nn.recompute import Recompute
from stable_audio_tools.nn.transformer import ContinuousTransformer


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
            message, size = f"conv_kernel_size must be odd, got {self.conv_kernel_size}", self.conv_kernel_size
            raise ConfigError([Problem(("conv_kernel_size",), message, f"nearest: {size - 1} or {size + 1}", size)])
        if "conv_kernel_size" in self.model_fields_set and not self.use_conv:
            message = "conv_kernel_size has no effect without use_conv"
            raise ConfigError([Problem(("conv_kernel_size",), message, 'set "use_conv": true, or remove it', on_key=True)])
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


class TransformerParams(StrictModel):
    """Keys that every transformer has, and how it is built from them.

    cross_keys: the owner's keys for the width of cross-attention conditions and for whether they are brought to embed_dim.
    """

    cross_keys: ClassVar[tuple[str, str]]

    embed_dim: PositiveInt = Field(description="width of a token")
    depth: PositiveInt = Field(description="number of blocks")
    mask_condition_padding: bool = Field(
        default=False, description="never attend to padding tokens of a prompt; published models do, as zero vectors"
    )
    prepend_cond_dim: NonNegativeInt = Field(default=0, description="width of prepended conditions; 0: there are none")
    causal_cross_attention: bool = Field(
        default=True, description="with causal, token i sees the first i + 1 condition tokens only, as published code does; false: all"
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
    remove_norms: bool = Field(default=False, description="DynamicTanh for layer norms")
    add_rope: bool = Field(default=False, description="a rotary table in each block, when rotary_pos_emb is false")
    layer_scale: bool = Field(default=False, description="learned gains of the branches, from 1e-5; they are then not zero-initialised")
    attn_kwargs: AttentionParams = Field(default_factory=AttentionParams)
    ff_kwargs: FeedForwardParams = Field(default_factory=FeedForwardParams)
    norm_kwargs: NormParams = Field(default_factory=NormParams)
    activation_checkpointing: ActivationCheckpointing = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._problems()]:
            raise ConfigError(problems)
        return self

    @property
    @abstractmethod
    def head_channels(self) -> int:
        """Channels of an attention head."""

    @property
    @abstractmethod
    def is_causal(self) -> bool:
        """Whether a token sees itself and earlier ones alone."""

    @property
    def cross_dim(self) -> int:
        """Width of the conditions for cross-attention; 0: there is none."""
        width: int = getattr(self, self.cross_keys[0])
        return width

    @property
    def projects_cross(self) -> bool:
        """Whether they are brought to embed_dim."""
        projects: bool = getattr(self, self.cross_keys[1])
        return projects

    @property
    def context_dim(self) -> int | None:
        """Width of the tokens that blocks attend to; None: there are none."""
        return (self.embed_dim if self.projects_cross else self.cross_dim) if self.cross_dim else None

    def transformer(self, *, dim_in: int, dim_out: int, global_cond_dim: int | None) -> ContinuousTransformer:
        """The transformer between tokens of width `dim_in` and `dim_out`; the width of an adaLN condition, None: there is none."""
        return ContinuousTransformer(
            self.embed_dim,
            self.depth,
            dim_in=dim_in,
            dim_out=dim_out,
            dim_heads=self.head_channels,
            cross_attend=self.cross_dim > 0,
            cond_token_dim=self.context_dim,
            final_cross_attn_ix=self.final_cross_attn_ix,
            global_cond_dim=global_cond_dim,
            causal=self.is_causal,
            causal_cross_attention=self.causal_cross_attention,
            rotary_pos_emb=self.rotary_pos_emb,
            zero_init_branch_outputs=self.zero_init_branch_outputs,
            conformer=self.conformer,
            use_sinusoidal_emb=self.use_sinusoidal_emb,
            use_abs_pos_emb=self.use_abs_pos_emb,
            abs_pos_emb_max_length=self.abs_pos_emb_max_length,
            num_memory_tokens=self.num_memory_tokens,
            sliding_window=self.sliding_window,
            remove_norms=self.remove_norms,
            add_rope=self.add_rope,
            layer_scale=self.layer_scale,
            attn_kwargs=self.attn_kwargs.kwargs(),
            ff_kwargs=self.ff_kwargs.kwargs(),
            norm_kwargs=self.norm_kwargs.kwargs(),
            activation_checkpointing=self.activation_checkpointing,
        )

    def _problems(self) -> Iterator[Problem]:
        """Everything that is wrong; owners add theirs."""
        yield from self._width_problems()
        yield from self._range_problems()
        yield from self._idle_settings()
        yield from self._kernel_problems()

    @abstractmethod
    def _head_problems(self) -> Iterator[Problem]:
        """Of the division of embed_dim into heads."""

    def _width_problems(self) -> Iterator[Problem]:
        if problems := [*self._head_problems()]:
            yield from problems
            return
        width, head, cond = self.embed_dim, self.head_channels, self.cross_dim
        if cond and not self.projects_cross and (cond % head or width % cond):
            key, switch = self.cross_keys
            message = f"{switch} is false, so {key} {cond} must hold whole heads of {head} channels and divide embed_dim {width}"
            yield Problem((key,), message, f'set "{switch}": true, or change {key}')

    def _range_problems(self) -> Iterator[Problem]:
        if self.sliding_window is not None and min(self.sliding_window) < -1:
            yield Problem(
                ("sliding_window",), f"expected two numbers from -1 up, got {list(self.sliding_window)}", "-1 means: all on that side"
            )
        if self.cross_dim and self.final_cross_attn_ix >= self.depth:
            message = f"final_cross_attn_ix {self.final_cross_attn_ix} is none of the {self.depth} blocks (depth), which count from 0"
            yield Problem(("final_cross_attn_ix",), message, "-1 means: all of them")
        if self.use_sinusoidal_emb and self.embed_dim % 2:
            yield Problem(("use_sinusoidal_emb",), f"needs an even embed_dim, got {self.embed_dim}", "change embed_dim, or remove it")

    def _idle_settings(self) -> Iterator[Problem]:
        """Settings that could not take effect."""
        given, cross_key = self.model_fields_set, self.cross_keys[0]
        if not self.cross_dim and self.final_cross_attn_ix != -1:
            yield Problem(("final_cross_attn_ix",), f"has no effect without {cross_key}", "remove it")
        if "mask_condition_padding" in given and not (self.cross_dim or self.prepend_cond_dim):
            yield Problem(("mask_condition_padding",), f"has no effect without {cross_key} or prepend_cond_dim", "remove it")
        if self.use_sinusoidal_emb and self.use_abs_pos_emb:
            yield Problem(("use_abs_pos_emb",), "use_sinusoidal_emb and use_abs_pos_emb exclude each other", "keep one")
        if "abs_pos_emb_max_length" in given and not self.use_abs_pos_emb:
            yield Problem(("abs_pos_emb_max_length",), "has no effect without use_abs_pos_emb", "set it true, or remove the length")
        if self.add_rope and self.rotary_pos_emb:
            yield Problem(("add_rope",), "has no effect while rotary_pos_emb is true", 'set "rotary_pos_emb": false, or remove it')
        if self.remove_norms and self.norm_kwargs.model_fields_set and not self.conformer:
            yield Problem(("norm_kwargs",), "has no effect: remove_norms leaves no layer norm", "remove one of the two")

    def _kernel_problems(self) -> Iterator[Problem]:
        """What the attention kernel cannot do, whatever the machine."""
        path = ("attn_kwargs", "backend")
        if self.attn_kwargs.backend != "flash":
            return
        if self.mask_condition_padding and (self.cross_dim or self.prepend_cond_dim):
            yield Problem(path, "flash takes no mask, which mask_condition_padding needs", 'set it to "auto", "sdpa" or "flex"')
        if self.is_causal and self.causal_cross_attention and self.cross_dim:
            yield Problem(path, "flash has no causal cross-attention", 'set it to "auto", or "causal_cross_attention" to false')
