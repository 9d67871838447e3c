"""The discriminator of ARC post-training: a diffusion transformer up to one layer, and a head on its features. arXiv:2505.08175.

It judges noisy latents under conditions. Attribute names of the heads are file format. B batch, C latent channels, T latent frames,
N tokens, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import Family, StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.conditioners import INPAINT_IDS, Condition
from stable_audio_tools.models.denoisers.dit import DiTDenoiser
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.nn.convnext import ConvNeXtEncoder, min_length

GROUPS = 32  # of the conv head's norms
CONV_HEAD_MIN_TOKENS = 64  # four halvings and a kernel of 4


class ArcWeights(StrictModel):
    """How much each loss counts."""

    generator: float = Field(1.0, ge=0, description="of the generator's adversarial loss")
    discriminator: float = Field(1.0, ge=0, description="of the discriminator's losses, the contrastive one included")
    contrastive: float = Field(1.0, ge=0, description="of the contrastive loss, times the weight of the discriminator")


class BaseHeadConfig(StrictModel):
    """Which features are judged, by which head, and what the discriminator minimises."""

    type: str
    dit_hidden_layer: NonNegativeInt = Field(description="the layer of the backbone, counted from 0, behind which features are judged")
    contrastive: bool = Field(False, description="also tell items from items under another item's conditions")
    contrastive_ids: tuple[str, ...] | None = Field(
        None, min_length=1, description='the conditions that are exchanged for that; default: "prompt" where there is one, else all'
    )
    include_grad_penalties: bool = Field(False, description="also keep scores smooth around real and generated items")
    weights: ArcWeights = ArcWeights()

    @model_validator(mode="after")
    def _ids_take_effect(self) -> Self:
        if self.contrastive_ids is not None and not self.contrastive:
            raise ConfigError([Problem(("contrastive_ids",), "no effect without contrastive", "set contrastive to true, or remove it")])
        return self

    @property
    @abstractmethod
    def min_tokens(self) -> int:
        """The shortest sequence that the head can judge."""

    def width_problem(self, width: int) -> str:
        """Why the head cannot judge features of this width; empty if it can."""
        return ""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """The head: features (B, D, N) of `width` D to scores (B, 1, fewer)."""


class ConvHeadParams(StrictModel):
    soft_clip_scale: float | None = Field(None, gt=0, description="scores stay within plus and minus this, by tanh; default: unbounded")
    loss_type: str = Field("lsgan", description="accepted, no effect: the loss is relativistic")


class ConvHeadConfig(BaseHeadConfig):
    """Strided convolutions."""

    type: Literal["conv"]
    config: ConvHeadParams = ConvHeadParams()

    @property
    def min_tokens(self) -> int:
        return CONV_HEAD_MIN_TOKENS

    def width_problem(self, width: int) -> str:
        return f"the conv head has norms of {GROUPS} groups, which {width} features are no multiple of" if width % GROUPS else ""

    def build(self, width: int) -> ConvHead:
        return ConvHead(self.config, width)


class ConvHead(nn.Module):
    """(B, D, N) to (B, 1, N / 16 - 3)."""

    def __init__(self, params: ConvHeadParams, width: int):
        super().__init__()
        self.soft_clip_scale = params.soft_clip_scale
        halvings: list[nn.Module] = []
        for _ in range(4):
            halvings += [nn.Conv1d(width, width, 4, stride=2, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
        self.layers = nn.Sequential(*halvings, nn.Conv1d(width, 1, 4))

    def forward(self, features: Tensor) -> Tensor:
        scores = self.layers(features)
        return scores if self.soft_clip_scale is None else self.soft_clip_scale * torch.tanh(scores / self.soft_clip_scale)


class ConvNeXtArgs(StrictModel):
    """Options of the blocks of a `convnext` head."""

    kernel_size: PositiveInt = Field(7, description="of the depthwise convolutions, odd")
    mult: PositiveInt = Field(4, description="inner width of a block as a multiple of its own")
    glu: bool = Field(False, description="gate the inner channels")

    @model_validator(mode="after")
    def _kernel_keeps_length(self) -> Self:
        if self.kernel_size % 2 == 0:
            fix = f"use {self.kernel_size - 1} or {self.kernel_size + 1}"
            raise ConfigError([Problem(("kernel_size",), "must be odd, or a block would change the length", fix, self.kernel_size)])
        return self


class ConvNeXtHeadParams(StrictModel):
    channels: PositiveInt = Field(128, description="width of the first stage")
    c_mults: tuple[PositiveInt, ...] = Field((1, 2, 4, 8), description="width behind each stage, as a multiple of channels")
    strides: tuple[PositiveInt, ...] = Field((2, 4, 8, 8), description="by how much each stage shortens")
    num_blocks: tuple[NonNegativeInt, ...] | None = Field(None, description="blocks of each stage; default: 3 each")
    conv_args: ConvNeXtArgs = ConvNeXtArgs()
    loss_type: str = Field("lsgan", description="accepted, no effect: the loss is relativistic")

    @model_validator(mode="after")
    def _stages_are_complete(self) -> Self:
        given: list[tuple[str, Sequence[int]]] = [("strides", self.strides)]
        given += [] if self.num_blocks is None else [("num_blocks", self.num_blocks)]
        problems = [
            Problem((name,), f"{len(values)} entries for {len(self.c_mults)} c_mults", "give one per stage")
            for name, values in given
            if len(values) != len(self.c_mults)
        ]
        if problems:
            raise ConfigError(problems)
        return self


class ConvNeXtHeadConfig(BaseHeadConfig):
    """A ConvNeXt encoder."""

    type: Literal["convnext"] = "convnext"
    config: ConvNeXtHeadParams = ConvNeXtHeadParams()

    @property
    def min_tokens(self) -> int:
        return min_length(self.config.strides)

    def build(self, width: int) -> ConvNeXtHead:
        return ConvNeXtHead(self.config, width)


class ConvNeXtHead(nn.Module):
    """(B, D, N) to (B, 1, about N / prod(strides)); a level of its own because published keys have it."""

    def __init__(self, params: ConvNeXtHeadParams, width: int):
        super().__init__()
        args = params.conv_args
        self.encoder = ConvNeXtEncoder(
            width,
            1,
            channels=params.channels,
            c_mults=params.c_mults,
            strides=params.strides,
            num_blocks=params.num_blocks or (3,) * len(params.c_mults),
            kernel_size=args.kernel_size,
            mult=args.mult,
            glu=args.glu,
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.encoder(features)


class _HeadFamily(Family):
    def _default_tag(self) -> str:
        return "convnext"  # upstream's


ARC_HEADS = _HeadFamily("discriminator head", ConvHeadConfig, ConvNeXtHeadConfig)
"""`training.arc.discriminator`."""


class ArcDiscriminator(nn.Module):
    """A diffusion model, of which the layers behind `dit_hidden_layer` are taken off, and a head.

    patch_size: latent frames in a token.

    Args:
        backbone: of a DiT, with its weights loaded; it is changed.
    """

    def __init__(self, config: BaseHeadConfig, backbone: ConditionedDiffusion):
        super().__init__()
        if not isinstance(backbone.model, DiTDenoiser):
            raise ValueError(f"the features of a dit are judged, and this is a {type(backbone.model).__name__}")
        network = backbone.model.model
        self.layer, self.patch_size = config.dit_hidden_layer, network.params.patch_size
        del network.transformer.layers[self.layer + 1 :]
        # Nothing that no gradient reaches may be an optimizer's: distributed training would wait for it.
        network.transformer.project_out = nn.Identity()
        network.postprocess_conv.requires_grad_(False)
        backbone.pretransform = None
        self.backbone = backbone
        self.head = config.build(network.params.embed_dim)

    def conditions(self, metadata: Sequence[Mapping[str, Any]], given: Mapping[str, Condition], device: torch.device) -> dict[str, Any]:
        """What the backbone's own conditioner makes of the metadata, and the inpainting conditions in `given`."""
        return {**self.backbone.conditioner(metadata, device), **{name: given[name] for name in INPAINT_IDS if name in given}}

    def forward(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """Scores (B, 1, places), high for real ones, of noisy latents (B, C, T) at noise levels (B,)."""
        features = self.backbone(x, t, cond=conditions, exit_layer_ix=self.layer)
        return self.head(features.mT)
