"""Run configs: the model configs with their `training` section validated, as a union discriminated on `model_type`.

`models/config.py` carries `training` unread, so that a published config loads for inference; here it is narrowed. The
classes hold every default of a training run; what a key means is written beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.diffusion.objectives import parse_objective
from stable_audio_tools.diffusion.samplers import find_sampler
from stable_audio_tools.diffusion.timesteps import parse_timestep_sampler
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
from stable_audio_tools.models.inpainting import InpaintMasks
from stable_audio_tools.training.losses.config import AutoencoderLossConfig
from stable_audio_tools.training.losses.diffusion_autoencoder import DiffusionAutoencoderLossConfig
from stable_audio_tools.training.optim import OptimizerGroup
from stable_audio_tools.training.strategies import STRATEGIES
from stable_audio_tools.training.strategies.arc import ArcConfig, TrimConfig
from stable_audio_tools.training.strategies.supervised import SupervisedConfig


def _refuse(value: Any) -> Any:
    if value:
        raise PydanticCustomError("not_available", "not available in this version: remove the key")
    return value


NotAvailable = Annotated[Any, BeforeValidator(_refuse)]
"""A key of upstream that this version does not act on; switching it on is an error, since a setting must have an effect."""


class DemoConfig(StrictModel):
    """When demos are made."""

    demo_every: int = Field(2000, gt=0, description="train steps between two demos")


class AutoencoderDemoConfig(DemoConfig):
    max_demos: int = Field(8, gt=0, description="clips reconstructed each time")


class DiffusionUncondDemoConfig(DemoConfig):
    """Clips from the same noise each time."""

    demo_steps: int = Field(250, gt=0, description="sampler steps")
    num_demos: int = Field(8, gt=0, description="clips made each time")
    sampler_type: str | None = Field(None, description="default: the objective's own")
    seed: int = Field(0, ge=0, description="demo i starts from noise (seed, i)")


class DiffusionAutoencoderDemoConfig(AutoencoderDemoConfig):
    """The same clips each time, encoded and sampled back from the same noise."""

    demo_steps: int = Field(250, gt=0, description="sampler steps")
    seed: int = Field(0, ge=0, description="demo i is sampled from noise (seed, i)")


class AudioDisplayParams(StrictModel):
    pre_encoded: bool = Field(False, description="the metadata hold latents of the model's pretransform, which are decoded")
    display_mix: bool = Field(False, description="also what is generated and this audio at once, as for an accompaniment")


class AudioDisplay(StrictModel):
    """Audio in the metadata that demos show beside what is generated."""

    id: str = Field(description="its key in the metadata")
    type: Literal["audio", "audio_dict"] = Field(description="one clip, or an object of clips by name, whose sum is shown")
    config: AudioDisplayParams = AudioDisplayParams()


class DiffusionCondDemoConfig(DemoConfig):
    """Fixed prompts, each rendered at every guidance scale with the same seed each time."""

    demo_steps: int = Field(250, gt=0, description="sampler steps")
    num_demos: int | None = Field(None, gt=0, description="number of prompts; default: all of demo_cond, else 4 from the data")
    demo_cfg_scales: tuple[float, ...] = Field((3.0,), min_length=1, description="guidance scales, each makes a set of demos")
    demo_cond: tuple[dict[str, Any], ...] = Field((), description="metadata of each demo, such as its prompt; empty: taken from the data")
    demo_cond_from_batch: bool = Field(False, description="take the metadata from the data even if demo_cond is given")
    sampler_type: str | None = Field(None, description="default: the objective's own")
    seed: int = Field(0, ge=0, description="demo i of every set starts from noise (seed, i)")
    display_audio_cond: bool = Field(False, description='show the audio that the metadata have as "audio"')
    cond_display_configs: tuple[AudioDisplay, ...] | None = Field(None, description="show other audio that the metadata have")

    @property
    def displays(self) -> tuple[AudioDisplay, ...]:
        """All audio of the metadata that is shown."""
        plain = (AudioDisplay(id="audio", type="audio"),) if self.display_audio_cond else ()
        return plain + (self.cond_display_configs or ())

    @model_validator(mode="after")
    def _what_is_shown_is_there(self) -> DiffusionCondDemoConfig:
        if self.displays and self.demo_cond and not self.demo_cond_from_batch:
            key = "display_audio_cond" if self.display_audio_cond else "cond_display_configs"
            message = "it shows audio of the metadata, and demo_cond, which is JSON, holds none"
            raise ConfigError([Problem((key,), message, "set demo_cond_from_batch to true, or remove demo_cond", on_key=True)])
        return self

    @model_validator(mode="after")
    def _as_many_prompts_as_demos(self) -> DiffusionCondDemoConfig:
        if self.demo_cond and self.num_demos is not None and self.num_demos != len(self.demo_cond):
            raise ValueError(
                f"num_demos is {self.num_demos} but demo_cond has {len(self.demo_cond)} entries; make them equal or leave num_demos out"
            )
        return self


class LanguageModelDemoConfig(DemoConfig):
    """Samples under fixed conditions and continuations of clips, each at every guidance scale with the same seed each time."""

    num_demos: int | None = Field(None, gt=0, description="number of samples; default: all of demo_cond, else 8")
    demo_cfg_scales: tuple[float, ...] = Field((1.0,), min_length=1, description="guidance scales, each makes a set of demos")
    demo_cond: tuple[dict[str, Any], ...] | None = Field(
        None, min_length=1, description="metadata of each sample, such as its prompt, or one for all; default: those of the first clips"
    )
    demo_duration_s: float | None = Field(None, gt=0, description="seconds of each demo, rounded up to whole frames; default: sample_size")
    num_continuations: int = Field(2, ge=0, description="clips of the data that are continued; 0: none")
    prefix_share: float = Field(0.25, gt=0, lt=1, description="share of a clip that its continuation is given")
    temperature: float = Field(1.0, ge=0, description="of the tokens' distribution; 0: always the most likely one")
    top_k: int | None = Field(None, gt=0, description="draw from that many of the most likely tokens, instead of top_p")
    top_p: float | None = Field(None, gt=0, le=1, description="draw from the most likely tokens that have this probability; default: 0.95")
    seed: int = Field(0, ge=0, description="sample i of every set is drawn by (seed, i)")

    @model_validator(mode="after")
    def _settings_take_effect(self) -> LanguageModelDemoConfig:
        problems, count = [], len(self.demo_cond or ())
        if count > 1 and self.num_demos not in (None, count):
            message = f"num_demos is {self.num_demos} but demo_cond has {count} entries"
            problems.append(Problem(("num_demos",), message, "make them equal, give one entry for all, or leave num_demos out"))
        if self.top_k is not None and self.top_p is not None:
            problems.append(Problem(("top_k",), "top_k and top_p exclude each other", "keep one"))
        if not self.num_continuations and "prefix_share" in self.model_fields_set:
            problems.append(Problem(("prefix_share",), "has no effect without continuations", "remove it, or raise num_continuations"))
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def num_samples(self) -> int:
        return self.num_demos or len(self.demo_cond or ()) or 8

    @property
    def nucleus(self) -> float:
        """The probability to draw from; 0 where top_k says what to draw from."""
        return self.top_p or (0.95 if self.top_k is None else 0.0)


class TrainingConfig(StrictModel):
    """What every kind of training has: how the weights move."""

    learning_rate: float | None = Field(None, gt=0, description="shorthand for the default optimizer; optimizer_configs wins over it")
    optimizer_configs: dict[str, OptimizerGroup] | None = Field(None, description="optimizer and scheduler of each player")
    clip_grad_norm: float = Field(0.0, ge=0, description="largest norm of a player's gradient; 0: unlimited")

    @model_validator(mode="after")
    def _every_player_has_an_optimizer(self) -> TrainingConfig:
        players, given = self.players(), self.optimizer_configs
        if given is None and self.learning_rate is None:
            fix = f"or give optimizer_configs an entry for {' and '.join(self.required_players())}"
            raise ConfigError([Problem(("learning_rate",), "no learning rate: give one here", fix)])
        if given is None:
            return self
        problems = [
            Problem(("optimizer_configs", name), f'no player "{name}" in this training', did_you_mean(name, players), on_key=True)
            for name in given
            if name not in players
        ]
        missing = [name for name in self.required_players() if name not in given]
        problems += [Problem(("optimizer_configs",), f'missing key "{name}"', "every player needs an optimizer") for name in missing]
        if problems:
            raise ConfigError(problems)
        return self

    @classmethod
    def players(cls) -> tuple[str, ...]:
        """The groups of parameters that optimizer_configs may name."""
        raise NotImplementedError

    def required_players(self) -> tuple[str, ...]:
        """The groups that optimizer_configs must name when it is given."""
        return self.players()


class AutoencoderTrainingConfig(TrainingConfig):
    """Reconstruction with spectral, time, bottleneck and adversarial losses."""

    warmup_steps: int = Field(0, ge=0, description="train steps before the adversarial and feature losses count")
    warmup_mode: Literal["adv", "full"] = Field("adv", description="adv: the discriminator learns during warm-up; full: it waits")
    encoder_freeze_on_warmup: bool = Field(False, description="freeze the encoder once warm-up is over")
    use_ema: bool = Field(False, description="keep an exponential moving average, used for demos, validation and export")
    force_input_mono: bool = Field(False, description="the encoder hears the mean of the channels")
    latent_mask_ratio: float = Field(0.0, ge=0, le=1, description="share of latent values zeroed at random")
    loss_configs: AutoencoderLossConfig = Field(default_factory=AutoencoderLossConfig)
    demo: AutoencoderDemoConfig = AutoencoderDemoConfig()
    eval_loss_configs: NotAvailable = None
    teacher_model: NotAvailable = None
    teacher_model_ckpt: NotAvailable = None

    @classmethod
    def players(cls) -> tuple[str, ...]:
        return ("autoencoder", "discriminator")

    def required_players(self) -> tuple[str, ...]:
        return self.players() if self.loss_configs.discriminator is not None else ("autoencoder",)


class DenoisingTrainingConfig(TrainingConfig):
    """What every kind of training by denoising has."""

    use_ema: bool = Field(True, description="keep an exponential moving average, used for demos, validation and export")
    timestep_sampler: str = Field("uniform", description="distribution of the training timesteps")
    timestep_sampler_options: dict[str, Any] = Field({}, description="parameters of that distribution")
    p_one_shot: float = Field(0.0, ge=0, le=1, description="share of examples trained from pure noise, t = 1")
    mask_padding: bool = Field(False, description="leave padding out of the loss")
    mask_padding_dropout: float = Field(0.0, ge=0, le=1, description="share of batches whose padding counts after all")
    log_loss_info: bool = Field(False, description="also log the loss by noise level, in ten buckets of t")
    validation_timesteps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)

    @model_validator(mode="after")
    def _timestep_sampler_exists(self) -> DenoisingTrainingConfig:
        parse_timestep_sampler(self.timestep_sampler, self.timestep_sampler_options)
        return self

    @property
    def condition_dropout(self) -> float:
        """Share of examples trained without conditions."""
        return 0.0

    @classmethod
    def players(cls) -> tuple[str, ...]:
        return ("diffusion",)


class DiffusionUncondTrainingConfig(DenoisingTrainingConfig):
    """Denoising without conditions."""

    strategy: Annotated[StrictModel, STRATEGIES] = SupervisedConfig()
    pre_encoded: bool = Field(False, description="the data are latents already")
    demo: DiffusionUncondDemoConfig = DiffusionUncondDemoConfig()


class InpaintingConfig(StrictModel):
    """Train to fill in what a mask leaves out."""

    mask_kwargs: InpaintMasks = Field(InpaintMasks(), description="which frames are left out")


class DiffusionTrainingConfig(DenoisingTrainingConfig):
    """Denoising with conditions. The strategy says which loss; these keys are shared by all of them."""

    strategy: Annotated[StrictModel, STRATEGIES] = SupervisedConfig()
    pre_encoded: bool = Field(False, description="the data are latents already")
    cfg_dropout_prob: float = Field(0.1, ge=0, le=1, description="share of examples trained without conditions, for guidance")
    inpainting: InpaintingConfig | None = Field(None, description="needed where the model sees masked input; absent: none is made")
    demo: DiffusionCondDemoConfig = DiffusionCondDemoConfig()
    arc: ArcConfig | None = Field(
        None, description="adversarial post-training for few steps, in place of a strategy; timestep_sampler then has no effect"
    )
    trim_config: TrimConfig | None = Field(None, description="with arc: shorten some batches")

    @model_validator(mode="after")
    def _settings_go_with_the_players(self) -> DiffusionTrainingConfig:
        if problems := [*(self._idle_without_arc() if self.arc is None else self._idle_with_arc())]:
            raise ConfigError(problems)
        return self

    @property
    def condition_dropout(self) -> float:
        return self.cfg_dropout_prob

    @classmethod
    def players(cls) -> tuple[str, ...]:
        return ("diffusion", "discriminator")

    def required_players(self) -> tuple[str, ...]:
        return self.players() if self.arc is not None else ("diffusion",)

    def _idle_without_arc(self) -> Iterator[Problem]:
        if self.trim_config is not None:
            yield Problem(("trim_config",), "no effect without arc", "remove it", on_key=True)
        if "discriminator" in (self.optimizer_configs or {}):
            yield Problem(("optimizer_configs", "discriminator"), "there is no discriminator without arc", "remove it", on_key=True)

    def _idle_with_arc(self) -> Iterator[Problem]:
        idle = ("strategy", "p_one_shot", "mask_padding", "mask_padding_dropout", "log_loss_info")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default or (name == "strategy" and name in self.model_fields_set):
                yield Problem((name,), "no effect with arc, which has losses and noise levels of its own", "remove it", on_key=True)


class DiffusionAutoencoderTrainingConfig(DenoisingTrainingConfig):
    """Denoising beside the latents of the same audio; encoder, bottleneck and network learn together."""

    use_reconstruction_loss: bool = Field(False, description="also compare spectra of the audio that each prediction implies")
    loss_configs: DiffusionAutoencoderLossConfig = DiffusionAutoencoderLossConfig()
    demo: DiffusionAutoencoderDemoConfig = DiffusionAutoencoderDemoConfig()

    @model_validator(mode="after")
    def _spectra_are_compared(self) -> DiffusionAutoencoderTrainingConfig:
        if self.loss_configs.spectral is not None and not self.use_reconstruction_loss:
            fix = "set use_reconstruction_loss to true, or remove the block"
            raise ConfigError([Problem(("loss_configs", "spectral"), "no effect without use_reconstruction_loss", fix, on_key=True)])
        return self


class LanguageModelTrainingConfig(TrainingConfig):
    """Predicting tokens: their cross-entropy, padding left out."""

    use_ema: bool = Field(False, description="keep an exponential moving average, used for demos, validation and export")
    pre_encoded: bool = Field(False, description="the data are tokens already")
    cfg_dropout_prob: float = Field(0.1, ge=0, le=1, description="share of examples trained without conditions, for guidance")
    demo: LanguageModelDemoConfig = LanguageModelDemoConfig()

    @classmethod
    def players(cls) -> tuple[str, ...]:
        return ("lm",)


class AutoencoderRun(AutoencoderModel):
    training: AutoencoderTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @model_validator(mode="after")
    def _losses_fit_the_clip(self) -> AutoencoderRun:
        _check_clip_length(self.sample_size, self.training.loss_configs.min_samples)
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
    def _demo_sampler_fits(self) -> DiffusionUncondRun:
        _check_demo_sampler(self.training.demo.sampler_type, self.model.diffusion_objective)
        return self


class BaseDiffusionCondRun(BaseDiffusionCondModel):
    """What runs of conditional models share, whether they inpaint or not."""

    training: DiffusionTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

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
    def _spectra_fit_the_audio(self) -> DiffusionAutoencoderRun:
        losses, (_, channels) = self.training.loss_configs, self.model.audio_channels
        if self.training.use_reconstruction_loss:
            _check_clip_length(self.sample_size, losses.min_samples)
        if channels != 2 and losses.spectral and (stereo := sorted({"w_sum", "w_diff"} & losses.spectral.config.model_fields_set)):
            what = f"only stereo has a sum and a difference, this audio has {channels} channel{'s' if channels > 1 else ''}"
            path = ("training", "loss_configs", "spectral", "config")
            raise ConfigError([Problem((*path, key), what, "remove the key", on_key=True) for key in stereo])
        return self


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
