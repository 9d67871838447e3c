"""What turns a clip into a vector, in which distances between sets of clips are taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Embedder(Protocol):
    """A fixed map from audio to a vector.

    Attributes:
        name: short, for the names of measures: letters, digits and underscores.
        sample_rate: Hz, what `embed` expects.
        recipe: all that fixes the map, as plain JSON values; holds `embedder`, `hash`, `sample_rate`.
    """

    @property
    def name(self) -> str: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def recipe(self) -> Mapping[str, Any]: ...

    def embed(self, audio: Tensor) -> Tensor:
        """(C, T) at `sample_rate`, finite, of any channels and length above 0, to (D,) float32 on the CPU."""
        ...


class TextEmbedder(Embedder, Protocol):
    """An embedder whose space has text in it too, such as a CLAP."""

    def embed_texts(self, texts: list[str]) -> Tensor:
        """N texts to (N, D) float32 on the CPU."""
        ...


class RatingEmbedder(Embedder, Protocol):
    """An embedder whose dimensions are ratings, more is better. axes: their names, as in names of measures."""

    @property
    def axes(self) -> tuple[str, ...]: ...


def recipe_hash(values: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any of the plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def file_hash(path: Path) -> str:
    """Twelve hexadecimal digits of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
