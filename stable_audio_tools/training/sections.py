"""The `training` section of each kind of training, with every default; what a key means is written beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.diffusion.timesteps import parse_timestep_sampler
from stable_audio_tools.models.config import AutoencoderModel
from stable_audio_tools.models.inpainting import InpaintMasks
from stable_audio_tools.training.autoencoder_teacher import TeacherFile, TeacherModel
from stable_audio_tools.training.conditions import TOKEN_CONDITIONS, BaseCondition
from stable_audio_tools.training.demos.config import (
    AutoencoderDemoConfig,
    DiffusionAutoencoderDemoConfig,
    DiffusionCondDemoConfig,
    DiffusionUncondDemoConfig,
    LanguageModelDemoConfig,
)
from stable_audio_tools.training.evaluation import PeriodicEvaluationConfig
from stable_audio_tools.training.losses.config import AutoencoderLossConfig
from stable_audio_tools.training.losses.denoising import LossNormalization
from stable_audio_tools.training.losses.diffusion_autoencoder import DiffusionAutoencoderLossConfig
from stable_audio_tools.training.losses.metrics import EvaluationConfig
from stable_audio_tools.training.optim import OptimizerGroup
from stable_audio_tools.training.strategies import STRATEGIES
from stable_audio_tools.training.strategies.arc import ArcConfig, TrimConfig
from stable_audio_tools.training.strategies.supervised import SupervisedConfig

IDLE_WITH_ARC = (
    "strategy",
    "conditions",
    "p_one_shot",
    "mask_padding",
    "mask_padding_dropout",
    "ot_coupling",
    "min_snr_gamma",
    "loss_normalization",
    "loss_norm_eps",
    "log_loss_info",
)


class TrainingConfig(StrictModel):
    """What every kind of training has: how the weights move."""

    learning_rate: float | None = Field(None, gt=0, description="shorthand for the default optimizer; optimizer_configs wins over it")
    optimizer_configs: dict[str, OptimizerGroup] | None = Field(None, description="optimizer and scheduler of each player")
    clip_grad_norm: float = Field(0.0, ge=0, description="largest norm of a player's gradient; 0: unlimited")
    evaluation: PeriodicEvaluationConfig | None = Field(None, description="measure what the model makes, every so many steps")

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

    @model_validator(mode="after")
    def _evaluation_fits(self) -> TrainingConfig:
        if self.evaluation is not None and (problems := [*self.evaluation.problems(getattr(self, "demo", None))]):
            raise ConfigError([replace(problem, path=("evaluation", *problem.path)) for problem in problems])
        return self

    @classmethod
    def players(cls) -> tuple[str, ...]:
        """The groups of parameters that optimizer_configs may name."""
        raise NotImplementedError

    def required_players(self) -> tuple[str, ...]:
        """The groups that optimizer_configs must name when it is given."""
        return self.players()

    def rests_weights(self) -> bool:
        """Whether some trained weights get no gradient in some steps: players take turns, or something is frozen on the way."""
        return len(self.required_players()) > 1


class AutoencoderTrainingConfig(TrainingConfig):
    """Reconstruction with spectral, time, bottleneck and adversarial losses."""

    warmup_steps: int = Field(0, ge=0, description="train steps before the adversarial and feature losses count")
    warmup_mode: Literal["adv", "full"] = Field("adv", description="adv: the discriminator learns during warm-up; full: it waits")
    encoder_freeze_on_warmup: bool = Field(False, description="after warm-up latents stay as they are: only what decodes them learns")
    use_ema: bool = Field(False, description="keep an exponential moving average, used for demos, validation and export")
    force_input_mono: bool = Field(False, description="the encoder hears the mean of the channels")
    latent_mask_ratio: float = Field(0.0, ge=0, le=1, description="share of latent values zeroed at random")
    loss_configs: AutoencoderLossConfig = Field(default_factory=AutoencoderLossConfig)
    demo: AutoencoderDemoConfig = AutoencoderDemoConfig()
    eval_loss_configs: EvaluationConfig | None = Field(None, description="metrics of validation beside the losses, logged as val/<key>")
    teacher_model: TeacherModel | None = Field(
        None, description='distil this autoencoder: a model config, or {"source": "checkpoint", "path": ...}'
    )
    teacher_model_ckpt: str | None = Field(None, description="the teacher's weights, a file of any kind")

    @model_validator(mode="after")
    def _teacher_is_complete(self) -> AutoencoderTrainingConfig:
        if problems := [*self._teacher_problems()]:
            raise ConfigError(problems)
        return self

    def _teacher_problems(self) -> Iterator[Problem]:
        teacher, path = self.teacher_model, self.teacher_model_ckpt
        if teacher is None and path is not None:
            fix = 'add its config as teacher_model, or put {"source": "checkpoint", "path": ...} there instead'
            yield Problem(("teacher_model_ckpt",), "no effect without teacher_model", fix, on_key=True)
        if teacher is None and self.loss_configs.distillation is not None:
            yield Problem(("loss_configs", "distillation"), "no effect without teacher_model", "remove the block", on_key=True)
        if isinstance(teacher, TeacherFile) and path is not None:
            yield Problem(("teacher_model_ckpt",), "teacher_model names the file already", "remove the key", on_key=True)
        if isinstance(teacher, AutoencoderModel) and path is None:
            message = "teacher_model_ckpt must be specified if teacher_model is specified"
            yield Problem(("teacher_model_ckpt",), message, "name the file of the teacher's weights")
        if teacher is not None and not self.loss_configs.distillation_terms():
            message = "no effect: every weight of what a teacher adds is 0"
            yield Problem(("teacher_model",), message, "give loss_configs.distillation weights above 0, or remove it", on_key=True)

    @classmethod
    def players(cls) -> tuple[str, ...]:
        return ("autoencoder", "discriminator")

    def required_players(self) -> tuple[str, ...]:
        return self.players() if self.loss_configs.discriminator is not None else ("autoencoder",)

    def rests_weights(self) -> bool:
        return super().rests_weights() or self.encoder_freeze_on_warmup


class DenoisingTrainingConfig(TrainingConfig):
    """What every kind of training by denoising has."""

    use_ema: bool = Field(True, description="keep an exponential moving average, used for demos, validation and export")
    timestep_sampler: str = Field("uniform", description="distribution of the training timesteps")
    timestep_sampler_options: dict[str, Any] = Field({}, description="parameters of that distribution")
    p_one_shot: float = Field(0.0, ge=0, le=1, description="share of examples trained from pure noise, t = 1")
    mask_padding: bool = Field(False, description="leave padding out of the loss")
    mask_padding_dropout: float = Field(0.0, ge=0, le=1, description="share of batches whose padding counts after all")
    ot_coupling: bool = Field(
        False,
        description="give each clip of a rank's batch the nearest of its noises (arXiv:2302.00482); samplers that add noise assume that it "
        "is independent",
    )
    min_snr_gamma: float | None = Field(
        None,
        gt=0,
        description="weigh errors by min(SNR, gamma), in units of the velocity; the paper's is 5 (arXiv:2303.09556); null: evenly",
    )
    loss_normalization: LossNormalization = Field(
        "none",
        description="divide errors by the target's variance: at each frame over channels (timestep), in each example, or in its channels",
    )
    loss_norm_eps: float = Field(1e-6, gt=0, description="added to that variance")
    log_loss_info: bool = Field(False, description="also log the loss by noise level, in ten buckets of t")
    validation_timesteps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)

    @model_validator(mode="after")
    def _timestep_sampler_exists(self) -> DenoisingTrainingConfig:
        parse_timestep_sampler(self.timestep_sampler, self.timestep_sampler_options)
        return self

    @model_validator(mode="after")
    def _loss_settings_act(self) -> DenoisingTrainingConfig:
        if problems := [*self._idle_loss_settings()]:
            raise ConfigError(problems)
        return self

    def _idle_loss_settings(self) -> Iterator[Problem]:
        if self.mask_padding_dropout > 0 and not self.mask_padding:
            yield Problem(
                ("mask_padding_dropout",), "no effect without mask_padding", "set mask_padding to true, or remove it", on_key=True
            )
        if "loss_norm_eps" in self.model_fields_set and self.loss_normalization == "none":
            yield Problem(
                ("loss_norm_eps",), "no effect without loss_normalization", "name a loss_normalization, or remove it", on_key=True
            )
        if self.p_one_shot > 0 and self.min_snr_gamma is not None:
            message = "no effect with min_snr_gamma, which gives pure noise the weight 0"
            yield Problem(("p_one_shot",), message, "remove one of the two", on_key=True)

    @property
    def given_loss_weight(self) -> float:
        """How much the frames count that the model is given."""
        return 1.0

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
    given_loss_weight: float = Field(
        1.0, ge=0, le=1, description="weight in the loss of frames that the model is given; 0: only those that it has to make count"
    )

    @model_validator(mode="after")
    def _some_are_given(self) -> InpaintingConfig:
        if self.given_loss_weight != 1 and not self.mask_kwargs.gives:
            fix = "give another kind of mask a share, or remove it"
            raise ConfigError([Problem(("given_loss_weight",), "no effect: the masks never give a frame", fix, on_key=True)])
        return self


class DiffusionTrainingConfig(DenoisingTrainingConfig):
    """Denoising with conditions. The strategy says which loss; these keys are shared by all of them."""

    strategy: Annotated[StrictModel, STRATEGIES] = SupervisedConfig()
    pre_encoded: bool = Field(False, description="the data are latents already")
    cfg_dropout_prob: float = Field(0.1, ge=0, le=1, description="share of examples trained without conditions, for guidance")
    conditions: tuple[Annotated[StrictModel, TOKEN_CONDITIONS], ...] = Field(
        (), description="what an example is told of itself: known frames, which are not made, and references in front of it"
    )
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
    def token_conditions(self) -> tuple[BaseCondition, ...]:
        """What an example is told of itself."""
        return tuple(condition for condition in self.conditions if isinstance(condition, BaseCondition))

    @property
    def condition_dropout(self) -> float:
        return self.cfg_dropout_prob

    @property
    def given_loss_weight(self) -> float:
        return self.inpainting.given_loss_weight if self.inpainting is not None else 1.0

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
        message = "no effect with arc, which has losses and noise levels of its own"
        for name in IDLE_WITH_ARC:
            if getattr(self, name) != type(self).model_fields[name].default or (name == "strategy" and name in self.model_fields_set):
                yield Problem((name,), message, "remove it", on_key=True)
        if self.given_loss_weight != 1:
            yield Problem(("inpainting", "given_loss_weight"), message, "remove it", on_key=True)


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
