"""Run configs: the model configs with their `training` section validated, as a union discriminated on `model_type`.

`models/config.py` carries `training` unread, so that a published config loads for inference; here it is narrowed, and held
against the model that it trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.diffusion.known import Told
from stable_audio_tools.diffusion.objectives import parse_objective
from stable_audio_tools.diffusion.samplers import find_sampler
from stable_audio_tools.models.codebook_patterns import pattern_table
from stable_audio_tools.models.conditioners import INPAINT_IDS
from stable_audio_tools.models.config import (
    AutoencoderModel,
    BaseDiffusionCondModel,
    DiffusionAutoencoderModel,
    DiffusionCondInpaintModel,
    DiffusionCondModel,
    DiffusionUncondModel,
    LanguageModel,
)
from stable_audio_tools.training.autoencoder_teacher import teacher_config, teacher_problems
from stable_audio_tools.training.conditions import FrameCondition, ReferenceCondition
from stable_audio_tools.training.sections import (
    AutoencoderTrainingConfig,
    DenoisingTrainingConfig,
    DiffusionAutoencoderTrainingConfig,
    DiffusionTrainingConfig,
    DiffusionUncondTrainingConfig,
    LanguageModelTrainingConfig,
)


class AutoencoderRun(AutoencoderModel):
    training: AutoencoderTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @model_validator(mode="after")
    def _losses_fit_the_clip(self) -> AutoencoderRun:
        _check_clip_length(self.sample_size, self.training.loss_configs.min_samples_at(self.sample_rate))
        return self

    @model_validator(mode="after")
    def _metrics_fit_the_clip(self) -> AutoencoderRun:
        metrics = self.training.eval_loss_configs
        if metrics and (problems := [*metrics.audio_problems(self.sample_rate, self.sample_size)]):
            raise ConfigError([replace(problem, path=("training", "eval_loss_configs", *problem.path)) for problem in problems])
        return self

    @model_validator(mode="after")
    def _teacher_fits(self) -> AutoencoderRun:
        if (teacher := self.training.teacher_model) is None:
            return self
        path: tuple[str | int, ...] = ("training", "teacher_model")
        try:
            config = teacher_config(teacher)
        except ConfigError as error:
            raise ConfigError([replace(problem, path=(*path, *problem.path)) for problem in error.problems]) from None
        inline = config is teacher
        if problems := [*teacher_problems(config, self, mono=self.training.force_input_mono)]:
            raise ConfigError([replace(problem, path=(*path, *problem.path) if inline else path) for problem in problems])
        return self

    @model_validator(mode="after")
    def _losses_fit_the_model(self) -> AutoencoderRun:
        losses, bottleneck = self.training.loss_configs, self.model.bottleneck
        problems = losses.audio_problems(self.sample_rate, self.model.out_channels)
        problems += losses.bottleneck_problems(bottleneck.loss_terms if bottleneck else ())
        if problems:
            raise ConfigError([replace(problem, path=("training", "loss_configs", *problem.path)) for problem in problems])
        return self


class DiffusionUncondRun(DiffusionUncondModel):
    training: DiffusionUncondTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @model_validator(mode="after")
    def _errors_can_be_scaled(self) -> DiffusionUncondRun:
        _check_variance(self.training, self.model.io_channels)
        return self

    @model_validator(mode="after")
    def _demo_sampler_fits(self) -> DiffusionUncondRun:
        _check_demo_sampler(self.training.demo.sampler_type, self.model.diffusion_objective)
        return self


class BaseDiffusionCondRun(BaseDiffusionCondModel):
    """What runs of conditional models share, whether they inpaint or not."""

    training: DiffusionTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @model_validator(mode="after")
    def _errors_can_be_scaled(self) -> BaseDiffusionCondRun:
        _check_variance(self.training, self.model.io_channels)
        return self

    @model_validator(mode="after")
    def _demo_sampler_fits(self) -> BaseDiffusionCondRun:
        _check_demo_sampler(self.training.demo.sampler_type, self.model.diffusion.diffusion_objective)
        return self

    @model_validator(mode="after")
    def _shown_latents_can_be_decoded(self) -> BaseDiffusionCondRun:
        shown = enumerate(self.training.demo.cond_display_configs or ())
        stored = [index for index, display in shown if display.config.pre_encoded]
        if stored and self.model.pretransform is None:
            path = ("training", "demo", "cond_display_configs", stored[0], "config", "pre_encoded")
            raise ConfigError([Problem(path, "the model has no pretransform that could decode latents", "remove it", True)])
        return self

    @model_validator(mode="after")
    def _masks_have_a_reader(self) -> BaseDiffusionCondRun:
        seen = [name for name in INPAINT_IDS if name in self.model.diffusion.input_concat_ids]
        if seen and self.training.inpainting is None:
            message = f"the model takes {' and '.join(seen)}, which only training with inpainting makes"
            raise ConfigError([Problem(("training", "inpainting"), message, 'add "inpainting": {}')])
        if not seen and self.training.inpainting is not None:
            message = f"no effect: the model takes neither {' nor '.join(INPAINT_IDS)}"
            fix = f"add them to model.diffusion.input_concat_ids, and {self.model.io_channels + 1} to the width it has, or remove the block"
            raise ConfigError([Problem(("training", "inpainting"), message, fix, on_key=True)])
        return self

    @property
    def told(self) -> Told:
        conditions = self.training.token_conditions
        references = [each for each in conditions if isinstance(each, ReferenceCondition)]
        return Told(len(references) < len(conditions), tuple(each.time_scale for each in references))

    @model_validator(mode="after")
    def _conditions_fit(self) -> BaseDiffusionCondRun:
        if problems := [*self._token_condition_problems()]:
            raise ConfigError(problems)
        return self

    def _token_condition_problems(self) -> Iterator[Problem]:
        conditions, network = self.training.token_conditions, self.model.diffusion
        params = getattr(network, "config", None)
        if conditions and not getattr(params, "takes_known", False):
            dit = f"this {network.type} has one noise level for all frames, so that none can be known"
            fix = 'use a dit with "global_cond_type": "adaLN", or "timestep_cond_type": "input_concat"'
            yield Problem(("training", "conditions"), dit, fix, on_key=True)
            return
        for index, condition in enumerate(conditions):
            path = ("training", "conditions", index)
            if self.training.inpainting is not None and isinstance(condition, FrameCondition):
                message = "the model would be told of frames twice: training.inpainting tells it already"
                yield Problem(path, message, "remove one of the two")
            for problem in condition.problems(self.sample_size / self.sample_rate):
                yield replace(problem, path=(*path, *problem.path))
            if isinstance(condition, ReferenceCondition) and not getattr(params, "sees_all", False):
                message = "with causal, sliding_window or conformer, frames of the clip do not all see a reference in front of it"
                yield Problem(path, message, "remove the condition, or that key of the network")

    @model_validator(mode="after")
    def _arc_fits(self) -> BaseDiffusionCondRun:
        training = self.training
        if training.arc is not None:
            inpaints, trims = training.inpainting is not None, training.trim_config is not None
            if problems := [*training.arc.misfits(self, inpaints=inpaints, trims=trims)]:
                raise ConfigError(problems)
        return self


class DiffusionCondRun(BaseDiffusionCondRun, DiffusionCondModel):
    model_type: Literal["diffusion_cond"]


class DiffusionCondInpaintRun(BaseDiffusionCondRun, DiffusionCondInpaintModel):
    model_type: Literal["diffusion_cond_inpaint"]


class DiffusionAutoencoderRun(DiffusionAutoencoderModel):
    training: DiffusionAutoencoderTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @model_validator(mode="after")
    def _errors_can_be_scaled(self) -> DiffusionAutoencoderRun:
        _check_variance(self.training, self.model.diffusion.io_channels)
        return self

    @model_validator(mode="after")
    def _spectra_fit_the_audio(self) -> DiffusionAutoencoderRun:
        losses, (_, channels) = self.training.loss_configs, self.model.audio_channels
        if self.training.use_reconstruction_loss:
            _check_clip_length(self.sample_size, losses.min_samples)
        if channels != 2 and losses.spectral and (stereo := sorted({"w_sum", "w_diff"} & losses.spectral.config.model_fields_set)):
            what = f"only stereo has a sum and a difference, this audio has {channels} channel{'s' if channels > 1 else ''}"
            path = ("training", "loss_configs", "spectral", "config")
            raise ConfigError([Problem((*path, key), what, "remove the key", on_key=True) for key in stereo])
        return self


def _check_variance(training: DenoisingTrainingConfig, channels: int) -> None:
    if training.loss_normalization == "timestep" and channels == 1:
        message = "the model has one channel, so a frame has no variance over channels"
        raise ConfigError([Problem(("training", "loss_normalization"), message, 'use "sample"', training.loss_normalization)])


def _check_demo_sampler(name: str | None, objective: str) -> None:
    try:
        find_sampler(name, parse_objective(objective))
    except ConfigError as error:
        raise ConfigError([replace(p, path=("training", "demo", "sampler_type")) for p in error.problems]) from None


def _check_clip_length(sample_size: int, shortest: int) -> None:
    if sample_size < shortest:
        fix = f"raise sample_size to at least {shortest}, or use smaller FFT sizes"
        raise ConfigError([Problem(("sample_size",), f"{sample_size} samples are too short for the losses", fix)])


class LanguageModelRun(LanguageModel):
    training: LanguageModelTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @property
    def demo_frames(self) -> int:
        """Frames of tokens of each demo."""
        seconds = self.training.demo.demo_duration_s
        samples = self.sample_size if seconds is None else seconds * self.sample_rate
        return math.ceil(samples / self.model.downsampling_ratio)

    @model_validator(mode="after")
    def _clips_and_conditions_fit(self) -> LanguageModelRun:
        if problems := [*self._length_problems(), *self._condition_problems()]:
            raise ConfigError(problems)
        return self

    def _length_problems(self) -> Iterator[Problem]:
        lm, frames = self.model.lm, self.sample_size // self.model.downsampling_ratio
        table = pattern_table(lm.codebook_pattern, lm.codebook_pattern_options, self.model.pretransform.num_quantizers, frames)
        if late := [number for number, steps in enumerate(table.step_of, 1) if steps.min() >= table.trained_steps]:
            message = f"{frames} frames are too few for the {lm.codebook_pattern} pattern: codebook {late[0]} comes after them"
            yield Problem(("sample_size",), message, "raise it, or choose shorter delays", self.sample_size)
        if self.demo_frames < 2:
            key = ("sample_size",) if self.training.demo.demo_duration_s is None else ("training", "demo", "demo_duration_s")
            yield Problem(key, "one frame of tokens is too short for a demo", "make it longer")
        positions = lm.config.abs_pos_emb_max_length
        if lm.config.use_abs_pos_emb and table.trained_steps > positions:
            message = f"sample_size is a sequence of {table.trained_steps} steps, but there are {positions} positions"
            yield Problem(("model", "lm", "config", "abs_pos_emb_max_length"), message, f"set it to at least {table.trained_steps}")

    def _condition_problems(self) -> Iterator[Problem]:
        training, routes = self.training, self.model.lm.routes
        used, conditioning = routes.tokens | routes.vectors, self.model.conditioning
        for index, metadata in enumerate(training.demo.demo_cond or ()):
            for name in sorted(used):
                other = conditioning.default_keys.get(name, name) if conditioning else name
                if metadata.get(name) is None and metadata.get(other) is None:
                    message = f"has no {value_text(name)}, which the model is conditioned on"
                    yield Problem(("training", "demo", "demo_cond", index), message, "add it")
        idle = {
            ("cfg_dropout_prob",): "cfg_dropout_prob" in training.model_fields_set and training.cfg_dropout_prob > 0,
            ("demo", "demo_cfg_scales"): any(scale != 1 for scale in training.demo.demo_cfg_scales),
            ("demo", "demo_cond"): training.demo.demo_cond is not None,
            ("evaluation", "cfg_scale"): training.evaluation is not None and training.evaluation.cfg_scale not in (None, 1),
        }
        for key in [key for key, given in idle.items() if given and not used]:
            fix = "remove it, or name conditions in model.lm"
            yield Problem(("training", *key), "no effect: the model has no conditions", fix, on_key=True)


AnyRun = AutoencoderRun | DiffusionUncondRun | DiffusionCondRun | DiffusionCondInpaintRun | DiffusionAutoencoderRun | LanguageModelRun
RunConfig = Annotated[AnyRun, Field(discriminator="model_type")]


def parse_run_config(data: Mapping[str, Any] | AnyRun, source: str = "model config", text: str | None = None) -> AnyRun:
    """Validate a whole config for training.

    Args:
        data: the parsed JSON document, or a validated run config, which is returned as it is.
        source: its file name, for messages.
        text: its text, so that messages show line and column.

    Raises:
        ConfigError: every problem at once.
    """
    if isinstance(data, AnyRun):
        return data
    return validate(RunConfig, data, source, text)
