"""Run configs: the model configs with their `training` section validated, as a union discriminated on `model_type`.

`models/config.py` carries `training` unread, so that a published config loads for inference; here it is narrowed. The
classes hold every default of a training run; what a key means is written beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.diffusion.objectives import parse_objective
from stable_audio_tools.diffusion.samplers import find_sampler
from stable_audio_tools.diffusion.timesteps import parse_timestep_sampler
from stable_audio_tools.models.config import AutoencoderModel, DiffusionCondModel
from stable_audio_tools.training.losses.config import AutoencoderLossConfig
from stable_audio_tools.training.optim import OptimizerGroup
from stable_audio_tools.training.strategies import STRATEGIES
from stable_audio_tools.training.strategies.supervised import SupervisedConfig


def _refuse(value: Any) -> Any:
    raise PydanticCustomError("not_available", "not available in this version: remove the key")


NotAvailable = Annotated[Any, BeforeValidator(_refuse)]
"""A key of the peer that this version does not act on; naming it is an error, since a setting must have an effect."""


class DemoConfig(StrictModel):
    """When demos are made."""

    demo_every: int = Field(2000, gt=0, description="train steps between two demos")


class AutoencoderDemoConfig(DemoConfig):
    max_demos: int = Field(8, gt=0, description="clips reconstructed each time")


class DiffusionCondDemoConfig(DemoConfig):
    """Fixed prompts, each rendered at every guidance scale with the same seed each time."""

    demo_steps: int = Field(250, gt=0, description="sampler steps")
    num_demos: int | None = Field(None, gt=0, description="number of prompts; default: all of demo_cond, else 4 from the data")
    demo_cfg_scales: tuple[float, ...] = Field((3.0,), min_length=1, description="guidance scales, each makes a set of demos")
    demo_cond: tuple[dict[str, Any], ...] = Field((), description="metadata of each demo, such as its prompt; empty: taken from the data")
    demo_cond_from_batch: bool = Field(False, description="take the metadata from the data even if demo_cond is given")
    sampler_type: str | None = Field(None, description="default: the objective's own")
    seed: int = Field(0, ge=0, description="demo i of every set starts from noise (seed, i)")
    display_audio_cond: NotAvailable = None
    cond_display_configs: NotAvailable = None

    @model_validator(mode="after")
    def _as_many_prompts_as_demos(self) -> DiffusionCondDemoConfig:
        if self.demo_cond and self.num_demos is not None and self.num_demos != len(self.demo_cond):
            raise ValueError(
                f"num_demos is {self.num_demos} but demo_cond has {len(self.demo_cond)} entries; make them equal or leave num_demos out"
            )
        return self


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


class DiffusionTrainingConfig(TrainingConfig):
    """Denoising with conditions. The strategy says which loss; these keys are shared by all of them."""

    strategy: Annotated[StrictModel, STRATEGIES] = SupervisedConfig()
    use_ema: bool = Field(True, description="keep an exponential moving average, used for demos, validation and export")
    pre_encoded: bool = Field(False, description="the data are latents already")
    cfg_dropout_prob: float = Field(0.1, ge=0, le=1, description="share of examples trained without conditions, for guidance")
    timestep_sampler: str = Field("uniform", description="distribution of the training timesteps")
    timestep_sampler_options: dict[str, Any] = Field({}, description="parameters of that distribution")
    p_one_shot: float = Field(0.0, ge=0, le=1, description="share of examples trained from pure noise, t = 1")
    mask_padding: bool = Field(False, description="leave padding out of the loss")
    mask_padding_dropout: float = Field(0.0, ge=0, le=1, description="share of batches whose padding counts after all")
    log_loss_info: bool = Field(False, description="also log the loss by noise level, in ten buckets of t")
    validation_timesteps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)
    demo: DiffusionCondDemoConfig = DiffusionCondDemoConfig()
    inpainting: NotAvailable = None
    arc: NotAvailable = None

    @model_validator(mode="after")
    def _timestep_sampler_exists(self) -> DiffusionTrainingConfig:
        parse_timestep_sampler(self.timestep_sampler, self.timestep_sampler_options)
        return self

    @classmethod
    def players(cls) -> tuple[str, ...]:
        return ("diffusion",)


class AutoencoderRun(AutoencoderModel):
    training: AutoencoderTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @model_validator(mode="after")
    def _losses_fit_the_clip(self) -> AutoencoderRun:
        shortest = self.training.loss_configs.min_samples
        if self.sample_size < shortest:
            fix = f"raise sample_size to at least {shortest}, or use smaller FFT sizes"
            raise ConfigError([Problem(("sample_size",), f"{self.sample_size} samples are too short for the losses", fix)])
        return self


class DiffusionCondRun(DiffusionCondModel):
    training: DiffusionTrainingConfig  # type: ignore[assignment]  # narrowed from an unread mapping

    @model_validator(mode="after")
    def _demo_sampler_fits(self) -> DiffusionCondRun:
        objective = parse_objective(self.model.diffusion.diffusion_objective)
        try:
            find_sampler(self.training.demo.sampler_type, objective)
        except ConfigError as error:
            raise ConfigError([replace(p, path=("training", "demo", "sampler_type")) for p in error.problems]) from None
        return self


AnyRun = AutoencoderRun | DiffusionCondRun
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
    if isinstance(data, AutoencoderRun | DiffusionCondRun):
        return data
    return validate(RunConfig, data, source, text)
