"""Denoisers: the list a newcomer adds one line to."""

from __future__ import annotations

from typing import Annotated

from stable_audio_tools.configs.base import Family

from .base import BaseDenoiserConfig, Denoiser
from .dit import DiTConfig

DENOISERS = Family("denoiser", DiTConfig)

DenoiserConfig = Annotated[BaseDenoiserConfig, DENOISERS]

__all__ = ["DENOISERS", "Denoiser", "DenoiserConfig"]
