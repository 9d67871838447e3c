"""The run folder as it grows: `run.json` (status, versions, size, time), `data.json`, and the report that is rebuilt from them."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from stable_audio_tools.report import build_report
from stable_audio_tools.training.data_summary import summarise
from stable_audio_tools.training.parts import parts_of
from stable_audio_tools.training.stop_signals import StoppedBySignal

log = logging.getLogger(__name__)

REBUILD_EVERY_S = 30.0
PACKAGES = ("stable-audio-tools", "torch", "torchaudio", "lightning", "pydantic", "ema-pytorch", "soundfile", "soxr")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


class RunFolder(pl.Callback):
    """Keeps `run.json` and `index.html` up to date, every 30 seconds and at the end.

    Args:
        folder: the run folder.
        name: of the run. max_steps: train steps to go to; None: no limit.
        resume: the command that goes on with this run.
    """

    def __init__(self, folder: Path, *, name: str, max_steps: int | None, resume: str = ""):
        self.folder, self.name, self.max_steps, self.resume = folder, name, max_steps, resume
        earlier = _read(folder / "run.json")
        self._before_s = float(earlier.get("wall_s", 0.0))
        self._resumed = list(earlier.get("resumed", []))
        self._first_started = earlier.get("started")
        self._facts: dict[str, Any] = {}
        self._start = self._next = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Also where nothing is left to train, and `on_train_start` never comes."""
        self._facts = {
            "started": self._first_started or datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "parameters": sum(p.numel() for p in pl_module.model.parameters() if p.requires_grad),
            "parts": [asdict(part) for part in parts_of(pl_module)],
            "device": str(trainer.strategy.root_device),
            "devices": trainer.world_size,
            "precision": trainer.precision,
            "accum_batches": pl_module.accumulate_batches,
            "batch_size": getattr(getattr(trainer, "datamodule", None), "batch_size", None),
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._start = self._next = time.monotonic()
        if pl_module.train_step:
            self._resumed.append(pl_module.train_step)
        if trainer.is_global_zero:
            self._describe_data(getattr(trainer.train_dataloader, "dataset", None))
        self.update(trainer, pl_module, "running")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() >= self._next:
            self.update(trainer, pl_module, "running")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._facts and isinstance(exception, StoppedBySignal):
            self.update(trainer, pl_module, "stopped")
        elif self._facts:
            self.update(trainer, pl_module, "failed", error=f"{type(exception).__name__}: {exception}")

    def _describe_data(self, dataset: Any) -> None:
        try:
            write_json(self.folder / "data.json", {"folders": summarise(dataset)})
        except Exception:
            log.exception("what the data are could not be written down; training goes on")

    def update(self, trainer: pl.Trainer, module: Any, status: str, **more: Any) -> None:
        """Write the status and rebuild the report."""
        if not trainer.is_global_zero:
            return
        self._next = time.monotonic() + REBUILD_EVERY_S
        state = {
            "name": self.name,
            "status": status,
            "step": module.train_step,
            "max_steps": self.max_steps,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_s": round(self._before_s + time.monotonic() - self._start, 1),
            "resumed": self._resumed,
            "resume": self.resume,
            **peak_memory(trainer.strategy.root_device),
        }
        try:
            write_json(self.folder / "run.json", state | self._facts | more)
            build_report(self.folder)
        except OSError as error:
            log.error("the report could not be written: %s; training goes on", error)
        except Exception:
            log.exception("the report could not be built; training goes on")


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most bytes so far: of tensors on a CUDA device, and of the process, in resident memory where the system says it."""
    found = {"peak_memory": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["peak_process_memory"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
