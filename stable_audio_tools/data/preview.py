"""A few items as the model will get them: what its conditioners read, the metadata, and the audio."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.audio.io import save_audio, shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.needs import Need
from stable_audio_tools.data.order import epoch_order
from stable_audio_tools.data.types import ItemKey, Part, Sample, fetch


@dataclass(frozen=True)
class Previewed:
    """One item. conditions: what each conditioner reads of it, by the conditioner's name; None: nothing."""

    sample: Sample
    conditions: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For machines; what JSON does not know is described."""
        return {"conditions": _plain(self.conditions), "metadata": _plain(self.sample.metadata)}

    def lines(self) -> list[str]:
        """For people: texts as they are, everything else in one line each."""
        name = shown(str(self.sample.metadata.get("path", "an item")))
        read = [f"  {name} reads {_said(value)}" for name, value in self.conditions.items()]
        rest = [f"  {key}: {_said(value)}" for key, value in self.sample.metadata.items() if key != "path"]
        return [name, *read, *rest]


def preview(dataset: Any, count: int, needs: Sequence[Need], *, seed: int = 0) -> Iterator[Previewed]:
    """The first `count` items of the first epoch of a training with this seed.

    Raises:
        ConfigError: items cannot be served.
    """
    parts = getattr(dataset, "parts", None) or (Part(len(dataset)),)
    for row in epoch_order(parts, seed, 0, shuffle=True)[:count].tolist():
        (sample,) = fetch(dataset, [ItemKey(seed, *row)])
        yield Previewed(sample, {need.name: need.value(sample.metadata) for need in needs})


def write_clips(items: Iterable[Previewed], folder: Path, sample_rate: int) -> None:
    """Each item as a WAV file without its padding, and what goes with it as a JSON file beside it.

    Raises:
        ConfigError: the folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(items):
            path = folder / f"{number:03d}_{_stem(item.sample.metadata)}.wav"
            save_audio(path, item.sample.audio[:, : item.sample.valid_length], sample_rate)
            path.with_suffix(".json").write_text(json.dumps(item.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem((), f"the clips cannot be written: {error.strerror or error}")], shown(folder)) from None


def _stem(metadata: Mapping[str, Any]) -> str:
    """A file name that any system takes, out of the item's."""
    return re.sub(r"[^\w-]+", "_", Path(str(metadata.get("path", "item"))).stem)[:60]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float | bool) else _said(value)


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
