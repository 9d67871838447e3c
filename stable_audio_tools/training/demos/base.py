"""What every demo shares: when it is due, which weights it shows, its own random numbers, saving, logging, and failing.

A subclass renders. Demos are made on rank 0 from the sampling weights (EMA where there are any), before the first step,
every `demo_every` train steps and when training ends, unless a signal ends it. Where weights are shared out among processes,
all of them render the same and rank 0 keeps it. Written policy: a demo that fails is logged with its traceback and training
goes on.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from stable_audio_tools.audio.io import save_audio
from stable_audio_tools.audio.latent_picture import save_latents
from stable_audio_tools.audio.loudness import can_measure, loudness_lufs
from stable_audio_tools.audio.spectrogram import save_spectrogram
from stable_audio_tools.inference.generation import evaluation_mode
from stable_audio_tools.training.loggers import DemoFiles, log_demo
from stable_audio_tools.training.parallel import FullyShardedStrategy
from stable_audio_tools.training.run_folder import write_json
from stable_audio_tools.training.stop_signals import Interrupted, interruptible

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demo:
    """One clip to listen to.

    title: what the clip shows; unique within a step.
    audio: (C, T) in [-1, 1].
    kind: generated, original, reconstruction, masked, condition or mix.
    group: demos of one group belong together, such as one prompt over the course of training.
    info: further facts to show.
    latents: (C, T) that it was made from, for autoencoders.
    """

    title: str
    audio: Tensor
    kind: str = "generated"
    group: str = ""
    prompt: str | None = None
    cfg_scale: float | None = None
    seed: int | None = None
    info: dict[str, Any] = field(default_factory=dict)
    latents: Tensor | None = None


class DemoCallback(Callback):
    """Makes demos on schedule.

    Args:
        demo_every: train steps between demos.
        sample_rate: Hz of the audio.
        folder: the run's `demos` folder; None: `demos` in the trainer's root folder.
        batches: data that a subclass may take clips or metadata from.
    """

    def __init__(self, demo_every: int, sample_rate: int, *, folder: Path | None = None, batches: Sequence[Any] | None = None):
        self.demo_every, self.sample_rate, self.folder = demo_every, sample_rate, folder
        self.batches = batches
        self._last: int | None = None

    def render(self, module: Any) -> list[Demo]:
        """Make the demos from `module.sampling_model`, which is in eval mode, without gradients."""
        raise NotImplementedError

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.train_step == 0:
            self.show(trainer, pl_module)
        self._last = pl_module.train_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.train_step % self.demo_every == 0 and pl_module.train_step != self._last:
            self.show(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.train_step != self._last and not pl_module.interrupted:
            self.show(trainer, pl_module)

    def show(self, trainer: pl.Trainer, module: Any) -> None:
        """Render, save and log the demos of this step."""
        self._last = module.train_step
        together = isinstance(trainer.strategy, FullyShardedStrategy)
        if not trainer.is_global_zero and not together:
            return
        try:
            with (
                torch.no_grad(),
                isolated_random_state(),
                evaluation_mode(module.sampling_model),
                interruptible(lambda: module.told_to_stop and not together),  # ranks that wait for each other end together
            ):
                demos = self.render(module)
            if trainer.is_global_zero:
                self._save(trainer, demos, module.train_step)
        except Interrupted:
            log.info("the demo at step %d is left out, since training is to end", module.train_step)
        except Exception:
            log.exception("the demo at step %d failed; training goes on", module.train_step)

    def _save(self, trainer: pl.Trainer, demos: list[Demo], step: int) -> None:
        root = self.folder if self.folder is not None else Path(trainer.default_root_dir) / "demos"
        folder = root / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        entries = [self._save_one(trainer, demo, folder, index, step) for index, demo in enumerate(demos)]
        write_json(folder / "demos.json", entries)
        log.info("step %d: %d demos in %s", step, len(entries), folder)

    def _save_one(self, trainer: pl.Trainer, demo: Demo, folder: Path, index: int, step: int) -> dict[str, Any]:
        stem = f"{index:02d}_{demo.kind}" + (f"_cfg{demo.cfg_scale:g}" if demo.cfg_scale is not None else "")
        audio = demo.audio.detach().float().cpu()
        files = DemoFiles(demo.title, folder / f"{stem}.wav", folder / f"{stem}.png", audio, self.sample_rate)
        save_audio(files.audio_file, audio, self.sample_rate)
        save_spectrogram(audio, self.sample_rate, files.image_file)
        if demo.latents is not None:
            picture = folder / f"{stem}_latents.png"
            save_latents(demo.latents, picture)
            files = replace(files, latents_file=picture, latents=demo.latents.detach().float().cpu())
        log_demo(trainer.loggers, files, step)
        facts = {"prompt": demo.prompt, "cfg_scale": demo.cfg_scale, "seed": demo.seed, "info": demo.info or None}
        facts["latents"] = files.latents_file.name if files.latents_file else None
        facts["loudness_lufs"] = _loudness(audio, self.sample_rate)
        entry = {"title": demo.title, "audio": f"{stem}.wav", "image": f"{stem}.png", "kind": demo.kind, "group": demo.group}
        return entry | {key: value for key, value in facts.items() if value is not None}


def _loudness(audio: Tensor, sample_rate: int) -> float | None:
    """LUFS; None for silence, and where it cannot be measured."""
    loudness = loudness_lufs(audio, sample_rate) if can_measure(sample_rate, audio.shape[0]) else -math.inf
    return round(loudness, 2) if math.isfinite(loudness) else None


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Whatever is drawn inside, the generators outside (torch, CUDA, numpy, python) do not move; inside they start at 0."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
