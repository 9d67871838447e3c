"""The Lightning host of ARC post-training, and the models beside the one in training."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import cast

import torch

from stable_audio_tools.models.checkpoints import LoadedWeights, load_into, load_weights
from stable_audio_tools.models.config import BaseDiffusionCondModel
from stable_audio_tools.models.discriminators.arc import ArcDiscriminator
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.training.config import BaseDiffusionCondRun
from stable_audio_tools.training.diffusion import DiffusionCondTrainingWrapper
from stable_audio_tools.training.module import with_modules
from stable_audio_tools.training.prepare import AudioBatch, latent_batch
from stable_audio_tools.training.strategies.arc import AdversarialPostTraining, ArcConfig
from stable_audio_tools.training.strategies.base import LatentBatch
from stable_audio_tools.training.strategies.ode_warmup import OdeWarmup

log = logging.getLogger(__name__)

PRETRANSFORM = "pretransform."


class ARCTrainingWrapper(DiffusionCondTrainingWrapper):
    """Trains `diffusion` against a discriminator, after a warm-up with a teacher where there is one.

    Teacher and discriminator are the strategy's; neither is in an export, and the teacher is in no checkpoint.
    """

    strategy: AdversarialPostTraining

    @staticmethod
    def build_strategy(config: BaseDiffusionCondRun, model: ConditionedDiffusion) -> AdversarialPostTraining:
        """The strategy with its models, whose weights are read here.

        Raises:
            CheckpointError: a file of weights is not there, damaged, or of another model.
        """
        training, arc = config.training, config.training.arc
        assert arc is not None
        teacher, dropout = arc.teacher_of(config), training.cfg_dropout_prob
        warmup = None
        if teacher is not None and arc.ode_warmup is not None and arc.warms_up:
            warmup = OdeWarmup(arc.ode_warmup, _teacher(arc, teacher, config, model), cfg_dropout_prob=dropout)
        elif teacher is not None:
            log.warning("training.arc: the teacher has no effect without an ode_warmup of some steps; its weights are not read")
        return AdversarialPostTraining(
            arc,
            ArcDiscriminator(arc.discriminator, _backbone(arc, model)),
            warmup=warmup,
            trim=training.trim_config,
            frame_multiple=config.model.diffusion.frame_multiple[1],
            cfg_dropout_prob=dropout,
        )

    def prepare(self, batch: AudioBatch) -> LatentBatch:
        if self.strategy.warmup is not None and not self.strategy.warming_up(self.train_step):
            self.strategy.warmup.end()
        # On the discriminator's turn the model in training is only asked, its conditioners included.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.strategy.moves_model(self.train_step)):
            prepared = latent_batch(batch, self.diffusion, pre_encoded=self.pre_encoded)
            return self.with_masks(self.strategy.trimmed(prepared, self.train_step))


def _teacher(
    arc: ArcConfig, teacher: BaseDiffusionCondModel, run: BaseDiffusionCondModel, model: ConditionedDiffusion
) -> ConditionedDiffusion:
    assert arc.teacher_model_ckpt is not None
    weights = _read(arc.teacher_model_ckpt, model)
    return _loaded(_copy(model) if teacher is run else _built(teacher), weights)


def _backbone(arc: ArcConfig, model: ConditionedDiffusion) -> ConditionedDiffusion:
    weights = None if arc.discriminator_base_ckpt is None else _read(arc.discriminator_base_ckpt, model)
    base = arc.discriminator_base_model
    return _loaded(_copy(model) if base is None else _built(base), weights)


def _copy(model: ConditionedDiffusion) -> ConditionedDiffusion:
    """A copy with weights of its own, without a pretransform; what is frozen and only read stays shared."""
    view = cast(ConditionedDiffusion, with_modules(model))
    view.pretransform = None  # of the view, not of `model`
    return copy.deepcopy(view)


def _built(config: BaseDiffusionCondModel) -> ConditionedDiffusion:
    model = config.build()
    model.pretransform = None
    return model


def _read(path: str, model: ConditionedDiffusion) -> LoadedWeights | None:
    """The weights in a file but those of a pretransform; none for a model on the meta device, which is planned and not trained."""
    if next(model.parameters()).is_meta:
        return None
    weights = load_weights(path)
    return replace(weights, state_dict={key: value for key, value in weights.state_dict.items() if not key.startswith(PRETRANSFORM)})


def _loaded(model: ConditionedDiffusion, weights: LoadedWeights | None) -> ConditionedDiffusion:
    if weights is not None:
        log.info("%s", load_into(model, weights))
    return model
