"""ADP U-Nets as denoisers: with conditions, with a learned null for classifier-free guidance, and without conditions.

B batch, C channels, T frames, N tokens, D width of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.models.conditioners.routing import Inputs
from stable_audio_tools.models.conditioning_rules import Places, Width
from stable_audio_tools.nn.adp import time_embedding

from .adp_unet import ADPParams, ADPUNet
from .base import (
    BaseDecoderDenoiserConfig,
    BaseDenoiserConfig,
    BaseNetworkConfig,
    BaseUnconditionalConfig,
    Denoiser,
    halved,
    refuse_inputs,
)

CFG_RESCALE = 0.4  # of the published models
ROUTE_KEYS = ("context_features", "context_channels", "context_embedding_features")


class ADPCFGParams(ADPParams):
    context_embedding_features: PositiveInt = Field(description="width of the tokens for cross-attention")
    context_embedding_max_length: PositiveInt = Field(description="most tokens that there can be, that of use_xattn_time not counted")
    use_xattn_time: bool = Field(default=False, description="the timestep is one more token")


class _ADPNetworkConfig(BaseNetworkConfig):
    io_channels_key: ClassVar[str] = "in_channels"

    config: ADPParams

    @property
    def io_channels(self) -> int:
        return self.config.in_channels

    @property
    def frame_multiple(self) -> tuple[str, int]:
        return "patch_size x factors", self.config.frame_multiple

    @property
    def min_frames(self) -> int:
        stft = self.config.stft_num_fft if self.config.use_stft else None
        return super().min_frames if stft is None else stft // 2 + 1

    def _refused(self, keys: tuple[str, ...], why: str) -> Iterator[Problem]:
        for key in keys:
            if getattr(self.config, key):
                yield Problem(("config", key), f"{key} is {value_text(getattr(self.config, key))}, but {why}", "remove it")


class ADPConfig(_ADPNetworkConfig, BaseDenoiserConfig):
    """An ADP U-Net with conditions."""

    type: Literal["adp_1d"]

    def widths(self) -> Mapping[str, Width]:
        params = self.config
        return {
            "cross_attention_cond_ids": Width("context_embedding_features", params.context_embedding_features or 0, summed=False),
            "global_cond_ids": Width("context_features", params.context_features or 0, summed=True),
            "input_concat_ids": Width("context_channels", sum(params.beside), summed=True, listing=True),
        }

    def build(self) -> ADPDenoiser:
        return halved(ADPDenoiser(ADPUNet(self.config)))


class ADPCFGConfig(ADPConfig):
    """An ADP U-Net whose prompts have a learned null, as Stable Audio 1.0 has it."""

    type: Literal["adp_cfg_1d"]  # type: ignore[assignment]
    config: ADPCFGParams

    def places(self) -> Mapping[str, Places]:
        return {"cross_attention_cond_ids": Places("context_embedding_max_length", self.config.context_embedding_max_length)}

    def build(self) -> ADPCFGDenoiser:
        return halved(ADPCFGDenoiser(ADPCFGUNet(self.config)))


class ADPUnconditionalConfig(_ADPNetworkConfig, BaseUnconditionalConfig):
    """An ADP U-Net on its own."""

    type: Literal["adp_uncond_1d"]

    @model_validator(mode="after")
    def _no_conditions(self) -> Self:
        if problems := [*self._refused(ROUTE_KEYS, "this model has no conditions")]:
            raise ConfigError(problems)
        return self

    def build(self) -> ADPDenoiser:
        return halved(ADPDenoiser(ADPUNet(self.config)))


class ADPDecoderConfig(_ADPNetworkConfig, BaseDecoderDenoiserConfig):
    """An ADP U-Net that turns noise into audio beside the latents of it."""

    type: Literal["adp_1d"]

    @model_validator(mode="after")
    def _latents_only(self) -> Self:
        if problems := [
            *self._refused(("context_features", "context_embedding_features"), "only latents, as channels, reach this network")
        ]:
            raise ConfigError(problems)
        return self

    @property
    def cond_channels(self) -> tuple[str, int]:
        return "context_channels", sum(self.config.beside)

    def build(self) -> ADPDenoiser:
        return halved(ADPDenoiser(ADPUNet(self.config)))


class ADPDenoiser(Denoiser):
    """The network under the name `model`, where published checkpoints have it."""

    def __init__(self, model: ADPUNet):
        super().__init__()
        self.model = model

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
        exit_layer_ix: int | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """As `Denoiser.forward`.

        Raises:
            ValueError: an input that this network has no use for, among them `mask` and `exit_layer_ix`, or of another size.
        """
        refuse_inputs("an ADP U-Net", prepend_cond=prepend_cond, mask=mask, exit_layer_ix=exit_layer_ix)
        context, context_mask = self._context(t, cross_attn_cond, cross_attn_mask, cross_attn_dropped)
        return self.model(x, t, features=global_cond, beside=input_concat_cond, context=context, context_mask=context_mask, hidden=hidden)

    def _context(
        self, t: Tensor, tokens: Tensor | None, mask: Tensor | None, dropped: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What is attended to, and which of it is real."""
        return tokens, mask


class ADPCFGDenoiser(ADPDenoiser):
    """A network whose missing prompt is a learned vector at each place of the prompt."""

    model: ADPCFGUNet
    rescale_share = CFG_RESCALE

    def with_null(self, given: Inputs, others: Inputs) -> Inputs:
        """The learned null where `others` have no token, at every place where either has one."""
        tokens, mask, dropped = (others[f"cross_attn_{name}"] for name in ("cond", "mask", "dropped"))
        if tokens is None or mask is None or dropped is None or given["cross_attn_mask"] is None:
            return others
        null = self.model.null(tokens.shape[1]).to(tokens.dtype)
        filled = torch.where((dropped[:, None] | ~mask)[..., None], null, tokens)
        return {**others, "cross_attn_cond": filled, "cross_attn_mask": mask | _of_length(given["cross_attn_mask"], mask.shape[1])}

    def null_parameters(self) -> Iterator[nn.Parameter]:
        return self.model.fixed_embedding.parameters()

    def _context(
        self, t: Tensor, tokens: Tensor | None, mask: Tensor | None, dropped: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if tokens is None:
            return tokens, mask
        null = self.model.null(tokens.shape[1] + self.model.params.use_xattn_time)  # refuses more tokens than it has places
        if self.model.to_time_embedding is None:
            return tokens, mask
        timestep = self.model.to_time_embedding(t).to(tokens.dtype)
        if dropped is not None:
            timestep = torch.where(dropped[:, None], null[-1].to(tokens.dtype), timestep)
        return torch.cat((tokens, timestep[:, None]), dim=1), None if mask is None else F.pad(mask, (0, 1), value=True)


class ADPCFGUNet(ADPUNet):
    """The U-Net with what stands for a missing prompt, and the timestep as a token."""

    params: ADPCFGParams

    def __init__(self, params: ADPCFGParams):
        super().__init__(params)
        features, places = params.context_embedding_features, params.context_embedding_max_length + params.use_xattn_time
        self.to_time_embedding = time_embedding(params.channels // 2, features) if params.use_xattn_time else None
        self.fixed_embedding = _FixedEmbedding(places, features)

    def null(self, length: int) -> Tensor:
        """(length, D): a prompt of `length` tokens that says nothing.

        Raises:
            ValueError: there are more tokens than `context_embedding_max_length`.
        """
        table = self.fixed_embedding.embedding.weight
        if length > table.shape[0]:
            most = self.params.context_embedding_max_length
            tokens = length - self.params.use_xattn_time
            raise ValueError(f"{tokens} tokens, but context_embedding_max_length is {most}; raise it, or shorten the prompt")
        return table[:length]


class _FixedEmbedding(nn.Module):
    """A learned vector for each place, under its published name."""

    def __init__(self, places: int, features: int):
        super().__init__()
        self.embedding = nn.Embedding(places, features)


def _of_length(mask: Tensor, length: int) -> Tensor:
    """(B, N) to (B, length), cut or filled with False."""
    return F.pad(mask[:, :length], (0, max(0, length - mask.shape[1])))
