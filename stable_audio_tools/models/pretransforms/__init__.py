"""Pretransforms, the list a newcomer adds one line to: fixed maps between audio and the domain a model works in."""

from __future__ import annotations

from typing import Annotated

from stable_audio_tools.configs.base import Family

from .base import BasePretransformConfig, Pretransform, latent_problems
from .filterbanks import PatchedConfig
from .pqmf import PQMFConfig
from .spectrogram import LogSpectrogramConfig
from .wavelet import WaveletConfig

PRETRANSFORMS = Family("pretransform", PatchedConfig, WaveletConfig, PQMFConfig, LogSpectrogramConfig)

PretransformConfig = Annotated[BasePretransformConfig, PRETRANSFORMS]

# Last, because the autoencoder inside refers to the names above for a pretransform of its own, and codecs are made of its parts.
from .audiocraft_pretrained import AudiocraftPretrainedConfig  # noqa: E402
from .autoencoder import AutoencoderPretransformConfig  # noqa: E402
from .dac_pretrained import DACPretrainedConfig  # noqa: E402

for _member in (AutoencoderPretransformConfig, DACPretrainedConfig, AudiocraftPretrainedConfig):
    PRETRANSFORMS.register(_member)

__all__ = ["PRETRANSFORMS", "Pretransform", "PretransformConfig", "latent_problems"]
