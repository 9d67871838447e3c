"""What training starts from: a seeded model, weights from files, and the module that trains it."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stable_audio_tools.adapters import load_with_adapters
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.checkpoints import load_into, load_weights
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.utils import remove_weight_norm_from_model
from stable_audio_tools.training.checkpoint_io import check_fits
from stable_audio_tools.training.compile import compile_networks
from stable_audio_tools.training.config import AnyRun
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.step_guard import MAX_BAD_STEPS

log = logging.getLogger(__name__)

FoldWeightNorm = Literal["", "pre_load", "post_load"]


@dataclass(frozen=True)
class StartingWeights:
    """Weights that a new training starts from, in any kind of file that `load_weights` reads.

    pretrained: of the model, then adapters to merge into it, each as FILE or FILE:STRENGTH; none: random weights.
    pretransform: of its pretransform.
    fold_weight_norm: the pretransform's weight norm is folded before its weights are loaded (the file is folded already) or after.
    allow_partial: take what fits when a file does not fit the model.
    """

    pretrained: tuple[str, ...] = ()
    pretransform: str = ""
    fold_weight_norm: FoldWeightNorm = ""
    allow_partial: bool = False

    def load_into(self, model: nn.Module) -> None:
        """Replace weights of `model`, and log what was loaded.

        Raises:
            ConfigError: a file cannot be used, or the model has no place for it.
        """
        for report in load_with_adapters(model, self.pretrained, allow_partial=self.allow_partial):
            log.info("%s", report)
        if self.pretransform or self.fold_weight_norm:
            self._load_pretransform(getattr(model, "pretransform", None))

    def _load_pretransform(self, pretransform: Any) -> None:
        if getattr(pretransform, "model", None) is None:
            flags = "--pretransform-ckpt-path, --remove-pretransform-weight-norm"
            raise ConfigError("this model has no pretransform with weights", source=flags)
        if self.fold_weight_norm == "pre_load":
            remove_weight_norm_from_model(pretransform)
        if self.pretransform:
            log.info("%s", load_into(pretransform.model, load_weights(self.pretransform), allow_partial=self.allow_partial))
        if self.fold_weight_norm == "post_load":
            remove_weight_norm_from_model(pretransform)


@dataclass(frozen=True)
class StepSettings:
    """How a train step is made, beside what the model config says.

    accumulate_batches: batches whose gradients are added up before a step.
    clip_grad_norm: largest gradient norm; 0: as the model config says.
    log_every: train steps between two rows of metrics.
    max_bad_steps: skipped steps in a row after which training ends; 0: never.
    compile: compile the networks that train.
    """

    accumulate_batches: int = 1
    clip_grad_norm: float = 0.0
    log_every: int = 10
    max_bad_steps: int = MAX_BAD_STEPS
    compile: bool = False

    def apply_to(self, module: TrainingModule) -> None:
        module.accumulate_batches = self.accumulate_batches
        module.log_every_n_steps = self.log_every
        module.guard.limit = self.max_bad_steps
        module.clip_grad_norm = self.clip_grad_norm or module.clip_grad_norm
        if self.compile:
            compile_networks(module)


def build_module(
    config: AnyRun,
    document: dict[str, Any],
    *,
    seed: int,
    weights: StartingWeights | None = None,
    steps: StepSettings | None = None,
    resume_from: Path | None = None,
) -> TrainingModule:
    """The training that `config` describes, on a model whose random weights depend on `seed` alone.

    Args:
        document: the JSON that `config` was read from; it goes into checkpoints and exports.
        resume_from: the checkpoint that training goes on from; it is not loaded here.

    Raises:
        ConfigError: the weights do not fit, or the checkpoint is of another model or training.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    model = create_model_from_config(document)
    (weights or StartingWeights()).load_into(model)
    module = create_training_wrapper_from_config(config, model)
    module.model_config = document
    (steps or StepSettings()).apply_to(module)
    if resume_from is not None:
        check_fits(resume_from, module)
    return module
