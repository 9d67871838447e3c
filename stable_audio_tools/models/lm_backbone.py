"""The network of an audio language model: K embeddings summed, a causal transformer with conditions, K heads.

B batch, K codebooks, S steps, D width, V vocabulary, M and P condition tokens. Masks are bool, True = real.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from stable_audio_tools.configs.errors import Problem
from stable_audio_tools.nn.cache import TransformerCache
from stable_audio_tools.nn.feedforward import two_layers

from .conditioners.routing import Inputs
from .transformer_params import TransformerParams

DIM_HEADS = 64


class LMParams(TransformerParams):
    cross_keys = ("cross_attn_cond_dim", "project_cross_attn_cond")

    embed_dim: PositiveInt = Field(description="width of a step")
    dim_heads: PositiveInt | None = Field(default=None, description=f"channels of an attention head; default {DIM_HEADS}")
    num_heads: PositiveInt | None = Field(default=None, description="attention heads, instead of dim_heads")
    cross_attn_cond_dim: NonNegativeInt = Field(default=0, description="width of cross-attention conditions; 0: no cross-attention")
    project_cross_attn_cond: bool = Field(
        default=False, description="bring them to embed_dim; false: keep their width, so that keys and values have fewer heads"
    )
    causal_cross_attention: bool = Field(
        default=True,
        description="step i attends to condition tokens 0 to i alone, as published models were made; false: to all, which a prompt wants",
    )
    mask_condition_padding: bool = Field(default=True, description="never attend to padding tokens of a prompt")
    global_cond_dim: PositiveInt | None = Field(
        default=None, description="width of all global conditions together, which scale, shift and gate each block; default: what it is"
    )
    conformer: bool = Field(default=False, description="must be false: the module sees later tokens")

    @property
    def head_channels(self) -> int:
        if self.num_heads is not None:
            return max(1, self.embed_dim // self.num_heads)
        return min(self.dim_heads or DIM_HEADS, self.embed_dim)

    @property
    def is_causal(self) -> bool:
        return True

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        yield from self._future_problems()

    def _head_problems(self) -> Iterator[Problem]:
        key = "dim_heads" if self.num_heads is None else "num_heads"
        if self.num_heads is not None and self.dim_heads is not None:
            yield Problem(("num_heads",), "num_heads and dim_heads say the same thing", "keep one")
        elif self.embed_dim % (self.num_heads or self.head_channels):
            message = f"embed_dim {self.embed_dim} is no multiple of {key} {self.num_heads or self.head_channels}"
            yield Problem(("embed_dim",), message, f"change embed_dim or {key}")

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
        yield from super()._idle_settings()
        for key, default in (("project_cross_attn_cond", False), ("causal_cross_attention", True)):
            if not self.cross_attn_cond_dim and getattr(self, key) != default:
                yield Problem((key,), "has no effect without cross_attn_cond_dim", "remove it")


class LMBackbone(nn.Module):
    """A causal transformer over steps, with conditions in front, by cross-attention and by adaLN (arXiv:2212.09748).

    Args:
        global_cond_dim: width of the global condition; 0: there is none.
    """

    def __init__(self, params: LMParams, *, global_cond_dim: int = 0):
        super().__init__()
        width, cross_dim = params.embed_dim, params.cross_attn_cond_dim
        self.embed_dim, self.masks_padding = width, params.mask_condition_padding
        self.model = params.transformer(dim_in=width, dim_out=width, global_cond_dim=global_cond_dim or None)
        if params.prepend_cond_dim:
            self.to_prepend_embed = two_layers(params.prepend_cond_dim, width)
        self.to_cross_attn_embed = two_layers(cross_dim, width) if cross_dim and params.project_cross_attn_cond else nn.Identity()

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
