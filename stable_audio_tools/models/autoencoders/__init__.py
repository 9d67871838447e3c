"""Encoders and decoders, the lists a newcomer adds one line to."""

from __future__ import annotations

from typing import Annotated

from stable_audio_tools.configs.base import Family

from .base import BaseDecoderConfig, BaseEncoderConfig
from .dac import DACDecoderConfig, DACEncoderConfig
from .local_attn import LocalAttentionDecoderConfig, LocalAttentionEncoderConfig
from .oobleck import OobleckDecoderConfig, OobleckEncoderConfig
from .seanet import SEANetDecoderConfig, SEANetEncoderConfig
from .taae import TAAEDecoderConfig, TAAEEncoderConfig

ENCODERS = Family("encoder", OobleckEncoderConfig, DACEncoderConfig, SEANetEncoderConfig, TAAEEncoderConfig, LocalAttentionEncoderConfig)
DECODERS = Family("decoder", OobleckDecoderConfig, DACDecoderConfig, SEANetDecoderConfig, TAAEDecoderConfig, LocalAttentionDecoderConfig)

EncoderConfig = Annotated[BaseEncoderConfig, ENCODERS]
DecoderConfig = Annotated[BaseDecoderConfig, DECODERS]

# An autoencoder may stand on a pretransform, and a pretransform may be an autoencoder. Whichever package is imported first,
# the families above exist before `autoencoder.py` needs them, and PRETRANSFORMS before it is complete.
from .. import pretransforms  # noqa: E402, F401
