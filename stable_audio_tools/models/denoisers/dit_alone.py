"""The DiT where no conditions reach it: alone, as an unconditional model, and beside latents, in a diffusion autoencoder."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, PositiveInt

from stable_audio_tools.configs.errors import Problem

from .base import BaseDecoderDenoiserConfig, BaseUnconditionalConfig, ObjectiveName, halved
from .dit import DiffusionTransformer, DiTDenoiser, DiTNetworkConfig, DiTParams

OBJECTIVE = "the noise path; stable-audio-tools 0.0.x trains v whatever this says, so its checkpoints need v"


class UnconditionalDiTParams(DiTParams):
    io_channels: PositiveInt = Field(alias="in_channels", description="channels in and out")
    diffusion_objective: ObjectiveName = Field(default="v", description=OBJECTIVE)

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        yield from _condition_problems(self, "a diffusion_uncond model")
        if width := self.input_concat_dim:
            message = f"input_concat_dim is {width}, but a diffusion_uncond model has nothing to put beside its input"
            yield Problem(("input_concat_dim",), message, "set it to 0, or remove it", width)


class DecoderDiTParams(DiTParams):
    diffusion_objective: ObjectiveName = Field(default="v", description=OBJECTIVE)

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        yield from _condition_problems(self, "a diffusion_autoencoder")


def _condition_problems(params: DiTParams, model: str) -> Iterator[Problem]:
    for key in ("cond_token_dim", "global_cond_dim", "prepend_cond_dim"):
        if width := getattr(params, key):
            yield Problem((key,), f"{key} is {width}, but {model} has no such conditions", "set it to 0, or remove it", width)


class DiTUnconditionalConfig(DiTNetworkConfig, BaseUnconditionalConfig):
    """A diffusion transformer alone."""

    io_channels_key = "in_channels"

    config: UnconditionalDiTParams

    @property
    def diffusion_objective(self) -> ObjectiveName:
        return self.config.diffusion_objective

    def build(self) -> DiTDenoiser:
        return halved(DiTDenoiser(DiffusionTransformer(self.config)))


class DiTDecoderConfig(DiTNetworkConfig, BaseDecoderDenoiserConfig):
    """A diffusion transformer that sees the latents as channels."""

    config: DecoderDiTParams = Field(default_factory=DecoderDiTParams)

    @property
    def diffusion_objective(self) -> ObjectiveName:
        return self.config.diffusion_objective

    @property
    def cond_channels(self) -> tuple[str, int]:
        return "input_concat_dim", self.config.input_concat_dim

    def build(self) -> DiTDenoiser:
        return DiTDenoiser(DiffusionTransformer(self.config))
