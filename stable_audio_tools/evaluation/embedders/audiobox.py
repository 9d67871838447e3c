"""`audiobox_aesthetics`: how people would rate a clip (arXiv:2502.05139), by the authors' package and a local checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.audio.io import to_channels

from .base import file_hash

SAMPLE_RATE = 16000


class AudioboxAesthetics:
    """Four ratings from 1 to 10: content enjoyment, content usefulness, production complexity, production quality.

    Args:
        path: the authors' `checkpoint.pt`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """

    name, sample_rate = "audiobox_aesthetics", SAMPLE_RATE
    axes = ("enjoyment", "usefulness", "complexity", "quality")

    def __init__(self, path: str):
        from audiobox_aesthetics.infer import AXES_NAME, initialize_predictor

        self._predictor, self._names = initialize_predictor(path), AXES_NAME
        self.path = Path(path)

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        return {"embedder": self.name, "hash": file_hash(self.path), "sample_rate": SAMPLE_RATE}

    def embed(self, audio: Tensor) -> Tensor:
        mono = to_channels(audio.detach().float(), 1)
        (ratings,) = self._predictor.forward([{"path": mono, "sample_rate": SAMPLE_RATE}])
        return torch.tensor([ratings[name] for name in self._names])
