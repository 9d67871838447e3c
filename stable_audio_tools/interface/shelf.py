"""The models that a page can show: which there are in a folder of runs, and the one that is in memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stable_audio_tools.adapters import merge_adapter, read_adapter
from stable_audio_tools.models.config import BaseModelConfig
from stable_audio_tools.models.pretrained import WEIGHT_NAMES, find_model

EXPORTS, CHECKPOINTS = "exports", "checkpoints"
ADAPTER = "adapter*.safetensors"
NEWEST = 5  # checkpoints of a run that the list shows; the others are opened by their path


@dataclass(frozen=True)
class Choice:
    """A file or folder to choose, and what the list calls it."""

    label: str
    path: str


@dataclass(frozen=True)
class Wanted:
    """What is to be in memory: a model, and adapters (path, strength) merged into it in this order."""

    model: str
    adapters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Opened:
    """A model in memory.

    notes: sentences about the adapters in it.
    """

    wanted: Wanted
    model: nn.Module
    config: BaseModelConfig
    notes: tuple[str, ...] = ()


class Shelf:
    """Keeps one model in memory, or a few, and lends them to one at a time.

    Args:
        device: where models are put.
        keep: how many stay in memory; the one that was not used for longest goes first.
    """

    def __init__(self, device: str = "cpu", *, keep: int = 1):
        self.device, self.keep = device, keep
        self._lock = threading.Lock()
        self._opened: dict[tuple[Wanted, tuple[Any, ...]], Opened] = {}

    @contextmanager
    def lent(self, wanted: Wanted, say: Callable[[str], None]) -> Iterator[Opened]:
        """The model, which nobody else has meanwhile.

        Args:
            say: is told what takes time.

        Raises:
            ConfigError: it or an adapter cannot be read, or they do not fit.
        """
        with self._lock:
            yield self._open(wanted, say)

    def _open(self, wanted: Wanted, say: Callable[[str], None]) -> Opened:
        key = (wanted, tuple(_identity(path) for path in (wanted.model, *(path for path, _ in wanted.adapters))))
        opened = self._opened.pop(key, None)
        if opened is None:
            while len(self._opened) >= self.keep:
                del self._opened[next(iter(self._opened))]
            free_memory()
            say(f"Reading {Path(wanted.model).name}")
            opened = self._read(wanted, say)
        self._opened[key] = opened
        return opened

    def _read(self, wanted: Wanted, say: Callable[[str], None]) -> Opened:
        adapters = [(read_adapter(path), strength) for path, strength in wanted.adapters]
        found = find_model(wanted.model)
        model, notes = found.load(), []
        for adapter, strength in adapters:
            say(f"Merging {Path(adapter.source).name}")
            notes.append(str(merge_adapter(model, adapter, strength)))
        return Opened(wanted, model.to(self.device), found.parsed, tuple(notes))


def free_memory() -> None:
    """Give back what dropped models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def find_models(runs: Path, named: Sequence[str] = ()) -> list[Choice]:
    """What can be opened: what was named, then exports and checkpoints of each run, the newest run first."""
    choices = [Choice(path, path) for path in named]
    for run in _runs(runs):
        exports = sorted((run / EXPORTS).glob("*.safetensors"), key=lambda path: (path.name != WEIGHT_NAMES[0], path.name))
        choices += [Choice(f"{run.name} · {path.stem}", str(path)) for path in exports if not path.match(ADAPTER)]
        checkpoints = sorted((run / CHECKPOINTS).glob("step=*.ckpt"), reverse=True)[:NEWEST]
        choices += [Choice(f"{run.name} · checkpoint, {path.stem.replace('=', ' ')}", str(path)) for path in checkpoints]
    taken = {choice.path: choice for choice in reversed(choices)}
    return [choice for choice in choices if taken.get(choice.path) is choice]


def find_adapters(runs: Path) -> list[Choice]:
    """The adapters that runs have trained."""
    return [Choice(f"{run.name} · {path.stem}", str(path)) for run in _runs(runs) for path in sorted((run / EXPORTS).glob(ADAPTER))]


def _runs(folder: Path) -> list[Path]:
    """The runs in a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [run for run in folder.iterdir() if (run / EXPORTS).is_dir() or (run / CHECKPOINTS).is_dir()]
    return sorted(found, key=lambda run: (-run.stat().st_mtime, run.name))


def _identity(path: str) -> tuple[Any, ...]:
    """Changes when a file is written anew, such as the export of a run that goes on."""
    place = Path(path)
    files = [place] if place.is_file() else sorted([*place.glob("*.safetensors"), *place.glob(f"{EXPORTS}/*.safetensors")])
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
