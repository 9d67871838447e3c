"""Several weight files into one model: a base, then adapters of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from stable_audio_tools.adapters.files import read_adapter
from stable_audio_tools.adapters.merge import MergeReport, merge_adapter
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.models.checkpoints import LoadReport, load_into, load_weights


class AdapterFile(NamedTuple):
    """A file, and the share of its update that is wanted."""

    path: str
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> AdapterFile:
        """`FILE` or `FILE:STRENGTH`; a file of that very name comes first.

        Raises:
            ConfigError: the strength is infinite or NaN.
        """
        path, colon, number = text.rpartition(":")
        try:
            strength = float(number)
        except ValueError:
            return cls(text)
        if not colon or Path(text).exists():
            return cls(text)
        if not math.isfinite(strength):
            raise ConfigError("the strength must be a finite number", source=text)
        return cls(path, strength)


def load_with_adapters(model: nn.Module, files: Sequence[str], *, allow_partial: bool = False) -> Iterator[LoadReport | MergeReport]:
    """Load weights and merge adapters in the order of `files`; each may be `FILE:STRENGTH` for an adapter.

    Yields:
        what became of each.

    Raises:
        CheckpointError: a file does not fit, or an adapter comes before the weights it changes.
        ConfigError: a strength is given to a file of whole weights.
    """
    has_base = False
    for text in files:
        path, strength = AdapterFile.parse(text)
        weights = load_weights(path)
        if weights.kind == "adapter" and not has_base:
            fix = "name its base first: --pretrained-ckpt-path BASE --pretrained-ckpt-path ADAPTER"
            raise bad_file(path, "an adapter: it changes the weights of a base model, which is not given", fix)
        if weights.kind == "adapter":
            yield merge_adapter(model, read_adapter(weights), strength, allow_partial=allow_partial)
            continue
        if path != text:
            raise ConfigError("has a strength, but holds whole weights and is no adapter", source=text)
        yield load_into(model, weights, allow_partial=allow_partial)
        has_base = True
