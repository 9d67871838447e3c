"""Denoisers: the lists a newcomer adds one line to, by the model type they are part of."""

from __future__ import annotations

from typing import Annotated

from stable_audio_tools.configs.base import Family

from .adp import ADPCFGConfig, ADPConfig, ADPDecoderConfig, ADPUnconditionalConfig
from .base import BaseDecoderDenoiserConfig, BaseDenoiserConfig, BaseUnconditionalConfig, Denoiser
from .dau1d import DAU1dDecoderConfig, DAU1dUnconditionalConfig
from .dit import DiTConfig
from .dit_alone import DiTDecoderConfig, DiTUnconditionalConfig

DENOISERS = Family("denoiser", DiTConfig, ADPConfig, ADPCFGConfig)
"""`model.diffusion` of a diffusion_cond or diffusion_cond_inpaint model."""

UNCOND_DENOISERS = Family("unconditional denoiser", DiTUnconditionalConfig, DAU1dUnconditionalConfig, ADPUnconditionalConfig)
"""`model` of a diffusion_uncond model."""

DIFFAE_DENOISERS = Family("diffusion decoder", DiTDecoderConfig, DAU1dDecoderConfig, ADPDecoderConfig)
"""`model.diffusion` of a diffusion_autoencoder."""

DenoiserConfig = Annotated[BaseDenoiserConfig, DENOISERS]
UnconditionalConfig = Annotated[BaseUnconditionalConfig, UNCOND_DENOISERS]
DecoderDenoiserConfig = Annotated[BaseDecoderDenoiserConfig, DIFFAE_DENOISERS]

__all__ = [
    "DENOISERS",
    "DIFFAE_DENOISERS",
    "UNCOND_DENOISERS",
    "DecoderDenoiserConfig",
    "Denoiser",
    "DenoiserConfig",
    "UnconditionalConfig",
]
