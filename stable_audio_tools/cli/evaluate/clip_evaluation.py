"""A model's clips beside those of a dataset: what is asked for is made ready before the weights are read, so that it says what is wrong."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stable_audio_tools.cli.evaluate.clips import dataset_loader, save_clips, training_clips
from stable_audio_tools.cli.evaluate.flags import BATCH, EMBEDDER, NUM_CLIPS
from stable_audio_tools.cli.generate.progress import ClipProgress
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.needs import check_needs
from stable_audio_tools.data.synthetic import SyntheticConfig
from stable_audio_tools.data.types import ItemKey, fetch
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.embedders import Embedder, build_embedder
from stable_audio_tools.evaluation.measure import Measure
from stable_audio_tools.evaluation.metrics import choose_metrics, measure
from stable_audio_tools.evaluation.model_clips import Sampling, compared, made_pairs, reconstructs
from stable_audio_tools.models.config import BaseModelConfig
from stable_audio_tools.training.metadata_needs import metadata_needs

log = logging.getLogger(__name__)
OWN = "latents"  # the embedder that is the evaluated model's own, where no other is named
LABELS = "synthetic"  # what is measured against labels, among the names of metrics


class ClipEvaluation:
    """What the flags ask for, of a model of this config.

    Args:
        dataset: config of the data whose items are made anew.
        compared_with: its name, for recipes.

    Raises:
        ConfigError: metrics, embedders or data that do not fit.
    """

    def __init__(self, args: argparse.Namespace, config: BaseModelConfig, dataset: Any, *, compared_with: str, device: torch.device):
        self.args, self.config, self.compared_with, self.device = args, config, compared_with, device
        shape = (config.sample_size, config.sample_rate, config.audio_channels)
        self.paired = reconstructs(config)
        self.metrics = None if args.metrics is None else [name for name in args.metrics if name != LABELS]
        self.embedders = {spec: self._embedder(spec) for spec in args.embedder or [EMBEDDER]}
        self.loader = dataset_loader(_unseen(dataset), shape, args.batch_size or BATCH, args.seed, allow_code=args.allow_code)
        check_needs(self.loader.dataset, metadata_needs(config), run_code=args.allow_code)
        self.count = self._count(self.loader)
        self.training = training_clips(args.train_dataset, shape, allow_code=args.allow_code) if args.train_dataset else None
        self._check_metrics()

    def _embedder(self, spec: str) -> Embedder | None:
        """None: it is the model's own, whose weights are not there yet."""
        return None if spec == OWN else build_embedder(spec, device=str(self.device))

    def _check_metrics(self) -> None:
        first = fetch(self.loader.dataset, [ItemKey(self.args.seed, 0, 0)])[0].metadata
        prompts: list[str] | None = None if self.paired or not isinstance(first.get("prompt"), str) else []
        there = [embedder for embedder in self.embedders.values() if embedder is not None]
        empty = Comparison([], [], self.paired, prompts, self.training, there)
        choose_metrics(self.metrics, empty.needs_met | {"embedder"})

    def _count(self, loader: AudioLoader) -> int:
        there = len(loader.dataset)  # type: ignore[arg-type]
        if self.args.num_clips is not None and self.args.num_clips > there:
            message = f"{self.args.num_clips} clips are asked for, and the data have {there}"
            raise ConfigError([Problem((), message, f"--num-clips {there} at most, or name more data")], "--num-clips")
        return min(self.args.num_clips or NUM_CLIPS, there)

    def recipe(self, sampling: Sampling) -> dict[str, Any]:
        """What the recipes of all measures begin with."""
        return {"model": self.args.model, **sampling.to_dict(), "compared_with": self.compared_with}

    def measure(self, model: nn.Module, sampling: Sampling, folder: Path | None) -> list[Measure]:
        """Make the clips, keep them in `folder`, and measure them."""
        progress, rate = ClipProgress(self.count), self.config.sample_rate
        pairs = list(made_pairs(model, self.loader, self.count, sampling, self.config.sample_size, progress))
        progress.clear()
        if folder is not None:
            names = [str(pair.metadata.get("prompt") or pair.metadata.get("path") or "clip") for pair in pairs]
            save_clips(folder, [pair.made for pair in pairs], names, rate)
        comparison = compared(
            pairs,
            rate,
            paired=self.paired,
            embedders=[built or build_embedder(spec, model, str(self.device)) for spec, built in self.embedders.items()],
            training=self.training,
            loudness=self.args.loudness,
            recipe=self.recipe(sampling),
        )
        chosen = choose_metrics(self.metrics, comparison.needs_met)
        log.info("measuring: %s", ", ".join(chosen))
        return measure(chosen, comparison)


def _unseen(dataset: Any) -> Any:
    """What the model was not trained on, where a dataset knows that."""
    if isinstance(dataset, SyntheticConfig) and dataset.split == "train" and dataset.combinations("held_out"):
        return dataset.with_split("held_out")
    return dataset
