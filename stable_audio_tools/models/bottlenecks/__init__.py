"""Bottlenecks between encoder and decoder, the list a newcomer adds one line to."""

from __future__ import annotations

from typing import Annotated

from stable_audio_tools.configs.base import Family

from .base import BaseBottleneckConfig, Bottleneck
from .continuous import L2NormConfig, TanhConfig, VAEConfig
from .dac_rvq import DACRVQConfig, DACRVQVAEConfig
from .fsq import DitheredFSQConfig, FSQConfig
from .rvq import RVQConfig, RVQVAEConfig
from .softnorm import SoftNormConfig
from .wasserstein import WassersteinConfig

BOTTLENECKS = Family(
    "bottleneck",
    VAEConfig,
    TanhConfig,
    L2NormConfig,
    SoftNormConfig,
    WassersteinConfig,
    RVQConfig,
    RVQVAEConfig,
    DACRVQConfig,
    DACRVQVAEConfig,
    FSQConfig,
    DitheredFSQConfig,
)

BottleneckConfig = Annotated[BaseBottleneckConfig, BOTTLENECKS]

__all__ = ["BOTTLENECKS", "Bottleneck", "BottleneckConfig"]
