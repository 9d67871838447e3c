"""Discriminators, the list a newcomer adds one line to."""

from __future__ import annotations

from typing import Annotated

from stable_audio_tools.configs.base import Family

from .base import BaseDiscriminatorConfig, Discriminator
from .big_vgan import BigVGANDiscriminatorConfig
from .dac import DACDiscriminatorConfig
from .oobleck import OobleckDiscriminatorConfig
from .stft import EncodecDiscriminatorConfig

DISCRIMINATORS = Family(
    "discriminator",
    EncodecDiscriminatorConfig,
    DACDiscriminatorConfig,
    OobleckDiscriminatorConfig,
    BigVGANDiscriminatorConfig,
)

DiscriminatorConfig = Annotated[BaseDiscriminatorConfig, DISCRIMINATORS]

__all__ = ["DISCRIMINATORS", "Discriminator", "DiscriminatorConfig"]
