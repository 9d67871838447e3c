"""DiT: a transformer over latent frames (arXiv:2212.09748) with conditions by cross-attention, prefix, adaLN and input channels.

B batch, C latent channels, T frames, N = T / patch_size tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.errors import Problem
from stable_audio_tools.diffusion.known import Known
from stable_audio_tools.models.conditioners.routing import Inputs, resize_signal
from stable_audio_tools.models.conditioning_rules import Width
from stable_audio_tools.models.transformer_params import TransformerParams
from stable_audio_tools.nn.attention import mean_of_real
from stable_audio_tools.nn.embeddings import FourierFeatures
from stable_audio_tools.nn.feedforward import two_layers

from .base import BaseDenoiserConfig, BaseNetworkConfig, Denoiser

logger = logging.getLogger(__name__)

TIMESTEP_FEATURES = 256
NO_PLACE = (
    "timesteps per frame do not fit into the one token of global_cond_type prepend; "
    'set "global_cond_type": "adaLN", or "timestep_cond_type": "input_concat"'
)


class DiTParams(TransformerParams):
    cross_keys = ("cond_token_dim", "project_cond_tokens")

    io_channels: PositiveInt = Field(default=32, description="latent channels in and out")
    patch_size: PositiveInt = Field(default=1, description="frames folded into one token")
    embed_dim: PositiveInt = Field(default=768, description="width of a token")
    depth: PositiveInt = Field(default=12, description="number of blocks")
    num_heads: PositiveInt = Field(default=8, description="attention heads of embed_dim / num_heads channels")
    cond_token_dim: NonNegativeInt = Field(default=0, description="width of cross-attention conditions; 0: no cross-attention")
    project_cond_tokens: bool = Field(
        default=True, description="bring them to embed_dim; false: keep their width, so that keys and values have fewer heads"
    )
    global_cond_dim: NonNegativeInt = Field(default=0, description="width of all global conditions together; 0: there are none")
    project_global_cond: bool = Field(default=True, description="bring it to embed_dim; false asks that it is so already")
    global_cond_type: Literal["prepend", "adaLN"] = Field(
        default="prepend", description="global conditions and timestep as a token in front, or as scale, shift and gate of each block"
    )
    input_concat_dim: NonNegativeInt = Field(default=0, description="channels of all input concatenations together; 0: there are none")
    timestep_cond_type: Literal["global", "input_concat"] = Field(
        default="global", description="the timestep joins the global conditions, or the input as channels"
    )
    timestep_embed_dim: PositiveInt | None = Field(default=None, description="channels of the timestep for timestep_cond_type input_concat")
    transformer_type: Literal["continuous_transformer"] = Field(
        default="continuous_transformer", description="accepted, no effect: there is one"
    )
    causal: bool = Field(default=False, description="a token sees itself and earlier ones")

    @property
    def head_channels(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def is_causal(self) -> bool:
        return self.causal

    @property
    def takes_known(self) -> bool:
        """Whether each frame can have a timestep of its own."""
        return self.timestep_cond_type == "input_concat" or self.global_cond_type == "adaLN"

    @property
    def sees_all(self) -> bool:
        """Whether each token sees all others, wherever they stand."""
        return not self.causal and self.sliding_window is None and not self.conformer

    @property
    def input_channels(self) -> int:
        """Channels of latents and all that is put beside them."""
        timestep = self.timestep_embed_dim or 0 if self.timestep_cond_type == "input_concat" else 0
        return self.io_channels + self.input_concat_dim + timestep

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        yield from self._condition_problems()

    def _head_problems(self) -> Iterator[Problem]:
        width, heads = self.embed_dim, self.num_heads
        if width % heads:
            near = sorted({max(heads, width // heads * heads), (width // heads + 1) * heads})
            yield Problem(
                ("embed_dim",), f"embed_dim {width} is no multiple of num_heads {heads}", f"nearest: {' or '.join(map(str, near))}"
            )

    def _condition_problems(self) -> Iterator[Problem]:
        by_input = self.timestep_cond_type == "input_concat"
        if not self.project_global_cond and self.global_cond_dim not in (0, self.embed_dim):
            message = f"project_global_cond is false, so global_cond_dim {self.global_cond_dim} must equal embed_dim {self.embed_dim}"
            yield Problem(("global_cond_dim",), message, 'set "project_global_cond": true')
        if by_input and self.timestep_embed_dim is None:
            yield Problem(("timestep_embed_dim",), "timestep_cond_type input_concat needs timestep_embed_dim", "give a number of channels")
        if not by_input and self.timestep_embed_dim is not None:
            yield Problem(("timestep_embed_dim",), "has no effect with timestep_cond_type global", 'remove it, or set "input_concat"')
        if by_input and self.global_cond_type == "adaLN" and not self.global_cond_dim:
            yield Problem(
                ("global_cond_type",), "adaLN has nothing to act on: no global_cond_dim, and the timestep goes another way", "use prepend"
            )
        if "causal_cross_attention" in self.model_fields_set and not (self.causal and self.cond_token_dim):
            yield Problem(("causal_cross_attention",), "has no effect without causal and cond_token_dim", "remove it")


class DiTNetworkConfig(BaseNetworkConfig):
    """The sizes of a diffusion transformer, in whatever model it is."""

    type: Literal["dit"]
    config: DiTParams

    @property
    def io_channels(self) -> int:
        return self.config.io_channels

    @property
    def frame_multiple(self) -> tuple[str, int]:
        return "patch_size", self.config.patch_size


class DiTConfig(DiTNetworkConfig, BaseDenoiserConfig):
    """A diffusion transformer."""

    config: DiTParams = Field(default_factory=DiTParams)

    @property
    def left_open(self) -> bool:
        """Nobody uses the global weights, and the config says so by an empty list, as some published fine-tunes do."""
        return "global_cond_ids" in self.model_fields_set and not self.global_cond_ids and self.config.global_cond_dim > 0

    def widths(self) -> Mapping[str, Width]:
        params = self.config
        return {
            "cross_attention_cond_ids": Width("cond_token_dim", params.cond_token_dim, summed=False),
            "global_cond_ids": Width("global_cond_dim", None if self.left_open else params.global_cond_dim, summed=True),
            "input_concat_ids": Width("input_concat_dim", params.input_concat_dim, summed=True),
            "prepend_cond_ids": Width("prepend_cond_dim", params.prepend_cond_dim, summed=False),
        }

    def build(self) -> DiTDenoiser:
        network = DiffusionTransformer(self.config, global_given=not self.left_open)
        if self.left_open:
            logger.warning("global_cond_dim is %d and global_cond_ids is empty: those weights stay unused", self.config.global_cond_dim)
        return DiTDenoiser(network)


class DiTDenoiser(Denoiser):
    """The network under the name `model`, where published checkpoints have it."""

    def __init__(self, model: DiffusionTransformer):
        super().__init__()
        self.model = model

        self.takes_known, self.frames_per_token = model.params.takes_known, model.params.patch_size

    def forward(self, x: Tensor, t: Tensor, **inputs: Any) -> Tensor:
        return self.model(x, t, **inputs)

    def with_known(self, known: Known, x: Tensor, t: Tensor, inputs: Inputs, mask: Tensor | None, hidden: list[Tensor] | None) -> Tensor:
        """As `forward`; with references, features of layers are those of the whole sequence.

        Raises:
            ValueError: the timestep is one prepended token, or tokens do not see all others.
        """
        front = known.in_front
        if front and not self.model.params.sees_all:
            raise ValueError("with causal, sliding_window or conformer, frames of the clip do not all see a reference in front of it")
        seen, beside = known.sequence(x, mask), inputs["input_concat_cond"]
        if front and beside is not None:
            inputs = {**inputs, "input_concat_cond": F.pad(resize_signal(beside, x.shape[-1]), (front, 0))}
        positions = None if seen.positions is None else self._token_positions(seen.positions)
        output = self.model(seen.x, t, **inputs, known=seen.known, mask=seen.mask, positions=positions, hidden=hidden)
        return output[..., front:]

    def _token_positions(self, frames: Tensor) -> Tensor:
        """(N,) from positions of frames (T,); whole numbers where all are, which learned positions need."""
        patch = self.frames_per_token
        first = frames[::patch]
        return first if patch == 1 else first // patch if not first.is_floating_point() else first / patch


class DiffusionTransformer(nn.Module):
    """Latents, with conditions beside and in front of them, as tokens through the transformer and back.

    What the convolutions at both ends add is zero at first.

    Args:
        global_given: whether forward is given a global condition; if not, weights for one are kept and neither used nor trained.
    """

    def __init__(self, params: DiTParams, *, global_given: bool = True):
        super().__init__()
        self.params = params
        self.global_dim = params.global_cond_dim if global_given else 0
        width = params.embed_dim
        channels, patch = params.input_channels, params.patch_size

        self.timestep_features = FourierFeatures(TIMESTEP_FEATURES)
        self.to_timestep_embed = two_layers(TIMESTEP_FEATURES, params.timestep_embed_dim or width, bias=True)
        self.to_cond_embed = two_layers(params.cond_token_dim, params.context_dim) if params.context_dim else None
        self.to_global_embed = two_layers(params.global_cond_dim, width) if params.global_cond_dim else None
        if self.to_global_embed is not None:
            self.to_global_embed.requires_grad_(global_given)
        self.to_prepend_embed = two_layers(params.prepend_cond_dim, width) if params.prepend_cond_dim else None
        self.preprocess_conv = _zero(nn.Conv1d(channels, channels, 1, bias=False))
        self.postprocess_conv = _zero(nn.Conv1d(params.io_channels, params.io_channels, 1, bias=False))
        self.transformer = params.transformer(
            dim_in=channels * patch,
            dim_out=params.io_channels * patch,
            global_cond_dim=width if params.global_cond_type == "adaLN" else None,
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
        known: Tensor | None = None,
        positions: Tensor | None = None,
        exit_layer_ix: int | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """As `Denoiser.forward`. Features behind a layer include prepended tokens; the null of dropped ones is the zeros they are.

        Args:
            t: (B,), or (B, T) where frames differ; the frames of a patch then share the mean of theirs.
            known: (B, T) bool, frames of noise level 0 in place of t (B,), whole patches of them.
            positions: (N,) or (B, N), where the tokens stand, also between frames; default: 0, 1, ...

        Raises:
            ValueError: a condition that the config asks for is missing, or one that it has no place for is given; T is no
                multiple of the patch size; or frames of different timesteps meet a timestep that is one prepended token.
        """
        params = self.params
        if known is not None and not params.takes_known:
            raise ValueError(NO_PLACE)
        self._check(
            x, cross_attn_cond=cross_attn_cond, global_cond=global_cond, input_concat_cond=input_concat_cond, prepend_cond=prepend_cond
        )
        timestep = self._timestep(t, x, mask)
        clean = None if known is None else self._timestep(torch.zeros_like(t), x, mask)
        context = None if self.to_cond_embed is None else self.to_cond_embed(cross_attn_cond)
        vector = self.to_global_embed(global_cond) if self.to_global_embed is not None and self.global_dim else None
        clean_vector = None
        if params.timestep_cond_type == "global":
            clean_vector = clean if vector is None or clean is None else clean + vector
            vector = timestep if vector is None else timestep + (vector if timestep.ndim == 2 else vector[:, None])
        in_front = [] if self.to_prepend_embed is None else [self.to_prepend_embed(prepend_cond)]
        if params.global_cond_type == "prepend" and vector is not None:
            in_front.append(vector[:, None])
            vector = None

        beside = None
        if params.timestep_cond_type == "input_concat":
            beside = timestep if clean is None else torch.where(known[:, :, None], clean[:, None], timestep[:, None])  # type: ignore[index]

        features = self.transformer(
            self._to_tokens(x, input_concat_cond, beside, mask),
            context=context,
            context_mask=cross_attn_mask if params.mask_condition_padding else None,
            global_cond=vector,
            other_cond=clean_vector,
            other=None if clean_vector is None or known is None else known[:, :: params.patch_size],
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
                raise ValueError(NO_PLACE)
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
            "global_cond": ("global_cond_dim", self.global_dim, -1),
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


def _zero(layer: nn.Conv1d) -> nn.Conv1d:
    nn.init.zeros_(layer.weight)
    return layer
