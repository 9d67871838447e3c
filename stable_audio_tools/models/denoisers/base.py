"""What the parts of a diffusion model may expect of its network, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.diffusion.timesteps import DistributionShiftConfig
from stable_audio_tools.models.conditioners.routing import Routes

Ids = tuple[str, ...]


class Denoiser(nn.Module, ABC):
    """A network from noisy latents and conditions to a prediction; the keyword arguments are those of `routing.Inputs`."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cross_attn_cond: Tensor | None = None,
        cross_attn_mask: Tensor | None = None,
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


class Width(NamedTuple):
    """A width that the network's config states for a route.

    key: the key of `diffusion.config` that states it.
    value: its value; 0: the route is closed.
    summed: the route's conditions stand beside each other and their widths add up, else each has this width.
    """

    key: str
    value: int
    summed: bool


class BaseDenoiserConfig(StrictModel):
    """The `diffusion` section: which network, what it predicts, and which conditions reach it how."""

    type: str
    diffusion_objective: Literal["v", "rectified_flow", "rf_denoiser"] = Field(
        default="v", description="the noise path; rf_denoiser is rectified_flow sampled by pingpong"
    )
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

    @property
    @abstractmethod
    def io_channels(self) -> int:
        """Latent channels in and out."""

    @property
    @abstractmethod
    def frame_multiple(self) -> tuple[str, int]:
        """The key of the config that says so, and a number that the count of latent frames must be a multiple of."""

    @abstractmethod
    def widths(self) -> Mapping[str, Width]:
        """For each key of ids that the network has a route for: the width it states for it."""

    @abstractmethod
    def build(self) -> Denoiser: ...
