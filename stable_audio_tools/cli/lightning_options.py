"""The options of `fit`, `validate` and `test`: Lightning's, with where ours differ, and those of model, data and run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, Path_fr, PositiveInt
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.training.data_module import AudioDataModule
from stable_audio_tools.training.machine import machine_arguments
from stable_audio_tools.training.sections import TrainingConfig
from stable_audio_tools.training.start import FoldWeightNorm, StartingWeights, StepSettings
from stable_audio_tools.training.step_guard import MAX_BAD_STEPS

MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision")
DEFAULTS = {
    "val_check_interval": 1000,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""Where our defaults are not Lightning's."""

FIXED: dict[str, tuple[Any, str]] = {
    "fast_dev_run": (False, "--trainer.max_steps 2 --trainer.limit_val_batches 2 under a --name of its own tries a run out"),
    "min_steps": (None, "it counts optimizer calls; --trainer.max_steps counts train steps"),
    "enable_checkpointing": (None, "a run can always be resumed; --checkpoint_every 0 saves at its end alone"),
    "default_root_dir": (None, "the run folder is <save_dir>/<name>"),
    "use_distributed_sampler": (False, "the loader shares the data out to the ranks itself"),
    "barebones": (False, "it would leave no checkpoint"),
}
"""Options of Lightning that would break a run, with the only value that they may have, and why."""


OUR_LOOP = ("max_steps", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "log_every_n_steps")
VALIDATION = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")


@dataclass
class ModelArguments:
    """The model and the weights it starts from.

    Args:
        config: Model config, a JSON file.
        pretrained_ckpt_path: Start from these weights: safetensors, a state_dict, or a training checkpoint; then adapters to merge.
        pretransform_ckpt_path: Weights of the pretransform, in any of these kinds.
        remove_pretransform_weight_norm: Fold the pretransform's weight norm before loading (the file is folded already) or after.
        allow_partial: Take the weights that fit when a file does not fit the model, instead of stopping.
    """

    config: Path_fr
    pretrained_ckpt_path: str | list[str] = ""
    pretransform_ckpt_path: str = ""
    remove_pretransform_weight_norm: FoldWeightNorm = ""
    allow_partial: bool = False

    @property
    def weights(self) -> StartingWeights:
        pretrained = tuple(_listed(self.pretrained_ckpt_path or None))
        return StartingWeights(pretrained, self.pretransform_ckpt_path, self.remove_pretransform_weight_norm, self.allow_partial)


@dataclass
class DataArguments:
    """The data.

    Args:
        config: Dataset config, a JSON file. Without one the built-in synthetic sounds are used.
        val_config: Dataset config for validation. Without one, synthetic data validate on their held-out sounds and others not at all.
        test_config: Dataset config for test, by the same rule.
        batch_size: Clips a batch, on each device.
        num_workers: Processes that load data; 0 loads in the training process.
        allow_code: Allow dataset configs to run Python code that they name, such as custom_metadata_module.
    """

    config: Path_fr | None = None
    val_config: Path_fr | None = None
    test_config: Path_fr | None = None
    batch_size: PositiveInt = 4
    num_workers: NonNegativeInt = 4
    allow_code: bool = False

    def build(self, seed: int) -> AudioDataModule:
        files = (self.config, self.val_config, self.test_config)
        return AudioDataModule(
            *(file and file.absolute for file in files),
            batch_size=int(self.batch_size),  # of jsonargparse's own type, which no checkpoint may hold
            num_workers=int(self.num_workers),
            seed=seed,
            allow_code=self.allow_code,
        )


@dataclass
class RunArguments:
    """The run and its folder.

    Args:
        name: Name of the run; its folder is <save_dir>/<name>. Without one the model config's file name is used.
        save_dir: Folder of all runs.
        project: Project that remote loggers file the run under.
        logger: Where numbers and demos go besides the run folder and the loggers of trainer.logger.
        checkpoint_every: Train steps between two checkpoints; 0 means only at the end.
        save_top_k: Newest checkpoints to keep, besides last.ckpt; -1 means all.
        max_bad_steps: Steps in a row that are skipped, since something is not finite, after which the run ends; 0 means never.
        max_stall_minutes: Minutes without any progress after which the run ends, saying where it hangs; 0 means never.
        compile: Compile the networks that train, which pays on a GPU after some minutes.
    """

    name: str = ""
    save_dir: str = "runs"
    project: str = "stable_audio_tools"
    logger: Literal["auto", "wandb", "tensorboard", "csv", "comet", "none"] = "auto"
    checkpoint_every: NonNegativeInt = 1000
    save_top_k: int = 3
    max_bad_steps: NonNegativeInt = MAX_BAD_STEPS
    max_stall_minutes: NonNegativeFloat = 30.0
    compile: bool = False


class TrainerOptions:
    """What was given under `trainer`, sorted into what our own loop does and what Lightning does.

    Raises:
        ConfigError: an option that would break a run, or that has no effect.
    """

    def __init__(self, given: dict[str, Any]):
        self.given = given
        problems = [
            Problem(("trainer", name), "cannot be changed", why, given[name]) for name, (only, why) in FIXED.items() if given[name] != only
        ]
        if given["gradient_clip_algorithm"] not in (None, "norm"):
            fix = "leave it out: gradient_clip_val is the largest norm"
            problems.append(
                Problem(("trainer", "gradient_clip_algorithm"), "gradients are clipped by norm", fix, given["gradient_clip_algorithm"])
            )
        if problems:
            raise ConfigError(problems)

    @property
    def max_steps(self) -> int | None:
        """Train steps to go to."""
        return self.given["max_steps"] if self.given["max_steps"] >= 0 else None

    @property
    def steps(self) -> StepSettings:
        clip = self.given["gradient_clip_val"] or 0.0
        return StepSettings(self.given["accumulate_grad_batches"], float(clip), self.given["log_every_n_steps"] or 10)

    def machine(self, training: TrainingConfig) -> dict[str, Any]:
        """Where and how to compute; the other options are tried out too.

        Raises:
            ConfigError: this machine lacks something, or Lightning refuses an option.
        """
        asked = {name: self.given[name] for name in MACHINE} | {"precision": self.given["precision"] or "auto"}
        players, rests = len(training.required_players()), training.rests_weights()
        machine = machine_arguments(asked, players=players, rests=rests, flag="--trainer.{}".format)
        try:
            pl.Trainer(**copy.deepcopy(machine), **self._lightnings(), logger=False, **self.validation(True))
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigError([Problem(("trainer",), f"Lightning refuses it: {error}")]) from error
        return machine

    def validation(self, validates: bool) -> dict[str, Any]:
        """When to validate: `val_check_interval` is a whole number of train steps, a share of an epoch, or a time."""
        every, epochs = self.given["val_check_interval"], self.given["check_val_every_n_epoch"]
        if not validates:
            return {"check_val_every_n_epoch": 1, "limit_val_batches": 0}
        shown = {"limit_val_batches": self.given["limit_val_batches"]}
        if isinstance(every, int):
            return shown | {"val_check_interval": every * self.given["accumulate_grad_batches"], "check_val_every_n_epoch": epochs}
        return shown | {"val_check_interval": every, "check_val_every_n_epoch": epochs or 1}

    def with_ours(self, ours: dict[str, Any], validates: bool) -> dict[str, Any]:
        """Arguments of the Trainer: what was given, and what every run has."""
        lists = {name: [*_listed(ours.get(name)), *_listed(self.given[name])] for name in ("logger", "callbacks", "plugins")}
        return ours | self._lightnings() | self.validation(validates) | lists

    def _lightnings(self) -> dict[str, Any]:
        ours = {*MACHINE, *FIXED, *OUR_LOOP, *VALIDATION, "logger", "callbacks", "plugins"}
        rest = {name: value for name, value in self.given.items() if name not in ours}
        return rest | {"max_epochs": -1 if rest["max_epochs"] is None else rest["max_epochs"], "use_distributed_sampler": False}


def _listed(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
