"""What the parts of a diffusion model may expect of its network, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.known import Known
from stable_audio_tools.diffusion.timesteps import DistributionShiftConfig
from stable_audio_tools.models.conditioners.routing import Inputs, Routes
from stable_audio_tools.models.conditioning_rules import Ids, Places, Width
from stable_audio_tools.models.pretransforms import PretransformConfig, latent_problems

ObjectiveName = Literal["v", "rectified_flow", "rf_denoiser"]
Module = TypeVar("Module", bound=nn.Module)


class Denoiser(nn.Module, ABC):
    """A network from noisy latents and conditions to a prediction; the keyword arguments are those of `routing.Inputs`.

    rescale_share: share of the guided prediction's rescaling that generation uses unless told otherwise.
    takes_known: whether frames may differ in their noise level, so that some can be known. frames_per_token: made as one.
    """

    rescale_share: ClassVar[float] = 0.0
    takes_known: bool = False
    frames_per_token: int = 1

    @abstractmethod
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
        """Noisy latents (B, C, T) at noise levels t (B,) to a prediction (B, C, T).

        Args:
            mask: (B, T) bool, which frames are real; the others reach no real one.
            exit_layer_ix: give the features (B, N, D) behind this layer instead.
            hidden: filled with the features of every layer.
        """

    def with_known(self, known: Known, x: Tensor, t: Tensor, inputs: Inputs, mask: Tensor | None, hidden: list[Tensor] | None) -> Tensor:
        """As `forward`, where some is known.

        Raises:
            ValueError: this network has one noise level for all frames.
        """
        raise ValueError(f"{type(self).__name__} has one noise level for all frames, so that none can be known")

    def with_null(self, given: Inputs, others: Inputs) -> Inputs:
        """What guidance moves away from, `others`, with this network's own null in place of zeros where it has one.

        Args:
            given: the inputs that guidance moves towards.
            others: as `routing.Routes.unconditional` makes them.
        """
        return others

    def null_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of that null: training reaches them only where it leaves conditions out."""
        return iter(())


class BaseNetworkConfig(StrictModel):
    """Which network, and its sizes, known before it is built.

    io_channels_key: the key of the inner `config` that states the channels, for messages.
    """

    io_channels_key: ClassVar[str] = "io_channels"

    type: str

    @property
    @abstractmethod
    def io_channels(self) -> int:
        """Channels in and out."""

    @property
    @abstractmethod
    def frame_multiple(self) -> tuple[str, int]:
        """The key of the config that says so, and a number that the count of frames must be a multiple of."""

    @property
    def min_frames(self) -> int:
        """The least number of frames, a multiple of `frame_multiple`."""
        return self.frame_multiple[1]


class BaseDenoiserConfig(BaseNetworkConfig):
    """The `diffusion` section: which network, what it predicts, and which conditions reach it how."""

    diffusion_objective: ObjectiveName = Field(default="v", description="the noise path; rf_denoiser is rectified_flow sampled by pingpong")
    prediction: Literal["velocity", "x0"] = Field(
        default="velocity", description="what the network itself predicts; the loss is on the velocity either way"
    )
    cross_attention_cond_ids: Ids = Field(default=(), description="conditions attended to, token by token")
    global_cond_ids: Ids = Field(default=(), description="conditions that act on all frames alike, as one vector")
    input_concat_ids: Ids = Field(default=(), description="conditions beside the latents as channels; a vector is repeated at every frame")
    prepend_cond_ids: Ids = Field(default=(), description="conditions put in front of the sequence as tokens")
    distribution_shift_options: DistributionShiftConfig | None = Field(
        default=None, description="moves timesteps towards noise by sequence length, in training and sampling"
    )

    @property
    def routes(self) -> Routes:
        return Routes(self.cross_attention_cond_ids, self.global_cond_ids, self.input_concat_ids, self.prepend_cond_ids)

    @abstractmethod
    def widths(self) -> Mapping[str, Width]:
        """For each key of ids that the network has a route for: the width it states for it."""

    def places(self) -> Mapping[str, Places]:
        """For each key of ids whose number of tokens is limited: the limit."""
        return {}

    @abstractmethod
    def build(self) -> Denoiser: ...


class BaseUnconditionalConfig(BaseNetworkConfig):
    """The `model` object of an unconditional diffusion config: a network `model(x, t)`, and the domain it works in."""

    pretransform: PretransformConfig | None = Field(default=None, description="makes latents of audio; absent: the network sees audio")

    @model_validator(mode="after")
    def _pretransform_has_latents(self) -> Self:
        if problems := latent_problems(self.pretransform):
            raise ConfigError(problems)
        return self

    @property
    def diffusion_objective(self) -> ObjectiveName:
        """The noise path."""
        return "v"

    @property
    def downsampling_ratio(self) -> int:
        """Audio samples per frame of the network."""
        return 1 if self.pretransform is None else self.pretransform.downsampling_ratio

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with its initial weights halved: noisy audio (B, C, T) and noise levels (B,) to a prediction (B, C, T)."""


class BaseDecoderDenoiserConfig(BaseNetworkConfig):
    """The `diffusion` section of a diffusion autoencoder: a network that sees the latents, brought to its own rate, as channels."""

    @property
    def diffusion_objective(self) -> ObjectiveName:
        """The noise path."""
        return "v"

    @property
    @abstractmethod
    def cond_channels(self) -> tuple[str, int]:
        """The key of the config that says so, and the channels of the latents (`input_concat_cond`)."""

    @abstractmethod
    def build(self) -> Denoiser: ...


@torch.no_grad()
def halved(module: Module) -> Module:
    """`module` with every parameter halved, the initialisation of the published U-Nets and unconditional models."""
    for parameter in module.parameters():
        parameter.mul_(0.5)
    return module


def refuse_inputs(network: str, **given: object) -> None:
    """Raise ValueError where an input is given that this network has no use for."""
    if names := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{network} takes no {', '.join(names)}")
