"""The network of an audio language model: K embeddings summed, a causal transformer with conditions, K heads.

B batch, K codebooks, S steps, D width, V vocabulary, M and P condition tokens. Masks are bool, True = real.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.cache import TransformerCache
from stable_audio_tools.nn.transformer import ContinuousTransformer

from .conditioners.routing import Inputs
from .denoisers.dit import ActivationCheckpointing, AttentionParams, FeedForwardParams, NormParams

DIM_HEADS = 64


class LMParams(StrictModel):
    embed_dim: PositiveInt = Field(description="width of a step")
    depth: PositiveInt = Field(description="number of blocks")
    dim_heads: PositiveInt | None = Field(default=None, description=f"channels of an attention head; default {DIM_HEADS}")
    num_heads: PositiveInt | None = Field(default=None, description="attention heads, instead of dim_heads")
    cross_attn_cond_dim: NonNegativeInt = Field(default=0, description="width of cross-attention conditions; 0: no cross-attention")
    project_cross_attn_cond: bool = Field(
        default=False, description="bring them to embed_dim; false: keep their width, so that keys and values have fewer heads"
    )
    causal_cross_attention: bool = Field(
        default=True,
        description="step i attends to condition tokens 0 to i alone, as the peer's models were made; false: to all, which a prompt wants",
    )
    mask_condition_padding: bool = Field(default=True, description="never attend to padding tokens of a prompt")
    prepend_cond_dim: NonNegativeInt = Field(default=0, description="width of prepended conditions; 0: there are none")
    global_cond_dim: PositiveInt | None = Field(
        default=None, description="width of all global conditions together, which scale, shift and gate each block; default: what it is"
    )
    final_cross_attn_ix: int = Field(default=-1, ge=-1, description="last block with cross-attention; -1: all have it")
    rotary_pos_emb: bool = Field(default=True, description="rotary positions")
    zero_init_branch_outputs: bool = Field(default=True, description="blocks start as the identity")
    conformer: bool = Field(default=False, description="must be false: the module sees later tokens")
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
        if problems := [*self._width_problems(), *self._future_problems(), *self._idle_settings()]:
            raise ConfigError(problems)
        return self

    @property
    def head_channels(self) -> int:
        if self.num_heads is not None:
            return max(1, self.embed_dim // self.num_heads)
        return min(self.dim_heads or DIM_HEADS, self.embed_dim)

    @property
    def context_dim(self) -> int:
        """Width of the tokens that blocks attend to."""
        return self.embed_dim if self.project_cross_attn_cond else self.cross_attn_cond_dim

    def _width_problems(self) -> Iterator[Problem]:
        width, head, cond = self.embed_dim, self.head_channels, self.cross_attn_cond_dim
        key = "num_heads" if self.num_heads is not None else "dim_heads"
        if self.num_heads is not None and self.dim_heads is not None:
            yield Problem(("num_heads",), "num_heads and dim_heads say the same thing", "keep one")
        elif width % (self.num_heads or head):
            message = f"embed_dim {width} is no multiple of {key} {self.num_heads or head}"
            yield Problem(("embed_dim",), message, f"change embed_dim or {key}")
        elif cond and not self.project_cross_attn_cond and (cond % head or width % cond):
            message = (
                f"project_cross_attn_cond is false, so cross_attn_cond_dim {cond} must hold whole heads of {head} channels "
                f"and divide embed_dim {width}"
            )
            yield Problem(("cross_attn_cond_dim",), message, 'set "project_cross_attn_cond": true, or change cross_attn_cond_dim')
        if self.sliding_window is not None and min(self.sliding_window) < -1:
            given = list(self.sliding_window)
            yield Problem(("sliding_window",), f"expected two numbers from -1 up, got {given}", "-1 means: all on that side")
        if cond and self.final_cross_attn_ix >= self.depth:
            message = f"final_cross_attn_ix {self.final_cross_attn_ix} is none of the {self.depth} blocks (depth), which count from 0"
            yield Problem(("final_cross_attn_ix",), message, "-1 means: all of them")

    def _future_problems(self) -> Iterator[Problem]:
        """Options that would show a step the tokens it is to predict: training would look perfect, and generation be noise."""
        looks_ahead = {
            ("conformer",): self.conformer,
            ("ff_kwargs", "use_conv"): self.ff_kwargs.use_conv and self.ff_kwargs.conv_kernel_size > 1,
            ("attn_kwargs", "feat_scale"): self.attn_kwargs.feat_scale,
        }
        for path, present in looks_ahead.items():
            if present:
                yield Problem(path, f"{path[-1]} shows a step the later ones, which a language model has to predict", "remove it")

    def _idle_settings(self) -> Iterator[Problem]:
        """Settings that could not take effect."""
        given = self.model_fields_set
        if not self.cross_attn_cond_dim:
            for key in ("project_cross_attn_cond", "causal_cross_attention", "final_cross_attn_ix"):
                if key in given and getattr(self, key) != type(self).model_fields[key].default:
                    yield Problem((key,), "has no effect without cross_attn_cond_dim", "remove it")
        if "mask_condition_padding" in given and not (self.cross_attn_cond_dim or self.prepend_cond_dim):
            yield Problem(("mask_condition_padding",), "has no effect without cross_attn_cond_dim or prepend_cond_dim", "remove it")
        if self.use_sinusoidal_emb and self.use_abs_pos_emb:
            yield Problem(("use_abs_pos_emb",), "use_sinusoidal_emb and use_abs_pos_emb exclude each other", "keep one")
        if "abs_pos_emb_max_length" in given and not self.use_abs_pos_emb:
            yield Problem(("abs_pos_emb_max_length",), "has no effect without use_abs_pos_emb", "set it true, or remove the length")
        if self.add_rope and self.rotary_pos_emb:
            yield Problem(("add_rope",), "has no effect while rotary_pos_emb is true", 'set "rotary_pos_emb": false, or remove it')
        if self.remove_norms and self.norm_kwargs.model_fields_set:
            yield Problem(("norm_kwargs",), "has no effect: remove_norms leaves no layer norm", "remove one of the two")


class LMBackbone(nn.Module):
    """A causal transformer over steps, with conditions in front, by cross-attention and by adaLN (arXiv:2212.09748).

    Args:
        global_cond_dim: width of the global condition; 0: there is none.
    """

    def __init__(self, params: LMParams, *, global_cond_dim: int = 0):
        super().__init__()
        width, cross_dim = params.embed_dim, params.cross_attn_cond_dim
        self.embed_dim, self.masks_padding = width, params.mask_condition_padding
        self.model = ContinuousTransformer(
            width,
            params.depth,
            dim_in=width,
            dim_out=width,
            dim_heads=params.head_channels,
            cross_attend=cross_dim > 0,
            cond_token_dim=params.context_dim or None,
            global_cond_dim=global_cond_dim or None,
            causal=True,
            causal_cross_attention=params.causal_cross_attention,
            final_cross_attn_ix=params.final_cross_attn_ix,
            rotary_pos_emb=params.rotary_pos_emb,
            zero_init_branch_outputs=params.zero_init_branch_outputs,
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
        if params.prepend_cond_dim:
            self.to_prepend_embed = _mlp(params.prepend_cond_dim, width)
        self.to_cross_attn_embed = _mlp(cross_dim, width) if cross_dim and params.project_cross_attn_cond else nn.Identity()

    def forward(self, x: Tensor, inputs: Inputs, cache: TransformerCache | None = None) -> Tensor:
        """Steps (B, S, D) to (B, S, D); with a cache, x are the new steps, and tokens of conditions are kept from the first call on."""
        tokens: Inputs = {}
        if cache is None or cache.length == 0:
            tokens = self._condition_tokens(inputs)
        out = self.model(x, global_cond=inputs.get("global_cond"), cache=cache, **tokens)
        return out[:, -x.shape[1] :]

    def _condition_tokens(self, inputs: Inputs) -> Inputs:
        context, prepended = inputs.get("cross_attn_cond"), inputs.get("prepend_cond")
        return {
            "context": None if context is None else self.to_cross_attn_embed(context),
            "context_mask": inputs.get("cross_attn_mask") if self.masks_padding else None,
            "prepend_embeds": None if prepended is None else self.to_prepend_embed(prepended),
            "prepend_mask": inputs.get("prepend_cond_mask") if self.masks_padding else None,
        }


class CodebookTransformer(nn.Module):
    """From sequences of K codebooks to logits of the next step.

    The last entry of each embedding, `masked_token_id`, stands for no token.
    """

    def __init__(self, backbone: LMBackbone, *, num_quantizers: int, codebook_size: int):
        super().__init__()
        self.backbone = backbone
        self.num_quantizers, self.codebook_size, self.masked_token_id = num_quantizers, codebook_size, codebook_size
        self.embeds = nn.ModuleList(nn.Embedding(codebook_size + 1, backbone.embed_dim) for _ in range(num_quantizers))
        self.quantizer_heads = nn.ModuleList(nn.Linear(backbone.embed_dim, codebook_size) for _ in range(num_quantizers))

    def forward(self, sequence: Tensor, inputs: Inputs | None = None, cache: TransformerCache | None = None) -> Tensor:
        """Sequence (B, K, S) to logits (B, K, S, V): entry s is about step s + 1.

        Args:
            inputs: the conditions, as `Routes.inputs` makes them, in the precision of this module.
            cache: of the steps before; `sequence` is then the new ones.
        """
        return self.heads(self.hidden(sequence, inputs, cache))

    def hidden(self, sequence: Tensor, inputs: Inputs | None = None, cache: TransformerCache | None = None) -> Tensor:
        """(B, K, S) to what the heads read, (B, S, D)."""
        embedded = [embed(tokens) for embed, tokens in zip(self.embeds, sequence.unbind(1), strict=True)]
        return self.backbone(torch.stack(embedded).sum(0), inputs or {}, cache)

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, K, S, V)."""
        return torch.stack([head(x) for head in self.quantizer_heads], dim=1)


def _mlp(dim: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim_out, bias=False), nn.SiLU(), nn.Linear(dim_out, dim_out, bias=False))
