"""`fit`, `validate` and `test`: Lightning's own command line over the module, the data and the run folder of `train`.

Every option of Lightning's Trainer is `--trainer.NAME` or a key of the YAML file that `--config` names. Steps are train steps, as
everywhere here, and what Lightning refuses under manual optimization (accumulation, clipping) is given to our own loop.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
import torch
from jsonargparse import ActionYesNo
from jsonargparse.typing import NonNegativeInt, Path_fr, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from stable_audio_tools.cli.plugins import import_plugins
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.configs.suggest import closest
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule
from stable_audio_tools.training.loggers import check_logger
from stable_audio_tools.training.machine import machine_arguments, quiet_lightning
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run import RunSettings, TrainingRun, place_run
from stable_audio_tools.training.start import FoldWeightNorm, StartingWeights, StepSettings, build_module

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
UNKNOWN = re.compile(r"(?:unrecognized arguments: --|does not accept option ')([^\s='\"]+)")
"""How jsonargparse begins what it says of a flag, or of a key of a YAML file, that does not exist."""
RECOVER = "Resume this run from its newest good checkpoint if it has one, else start it"


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
    """

    name: str = ""
    save_dir: str = "runs"
    project: str = "stable_audio_tools"
    logger: Literal["auto", "wandb", "tensorboard", "csv", "comet", "none"] = "auto"
    checkpoint_every: NonNegativeInt = 1000
    save_top_k: int = 3


class Parser(LightningArgumentParser):
    """Lightning's parser with our error style; `trains` says that it is the one of `fit`."""

    trains = False

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if isinstance(ex, ConfigError):
            raise ex
        prog = self.prog.replace(" [options]", "")
        raise ConfigError([Problem((), message, f"{self._nearest(message)}{prog} --help lists the options")])

    def _nearest(self, message: str) -> str:
        """A suggestion, where `message` is about a flag or a key of a YAML file that does not exist."""
        unknown = UNKNOWN.search(message)
        if unknown is None:
            return ""
        below = [parser for action in self._actions if isinstance(action.choices, dict) for parser in action.choices.values()]
        names = [flag.lstrip("-") for parser in (self, *below) for action in parser._actions for flag in action.option_strings]
        near = closest(unknown[1], names)
        return f"did you mean {near}? " if near else ""


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

    def machine(self, players: int) -> dict[str, Any]:
        """Where and how to compute; the other options are tried out too.

        Raises:
            ConfigError: this machine lacks something, or Lightning refuses an option.
        """
        asked = {name: self.given[name] for name in MACHINE} | {"precision": self.given["precision"] or "auto"}
        machine = machine_arguments(asked, players=players, flag="--trainer.{}".format)
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


class CommandLine(LightningCLI):
    """Parses, builds in the order of `train` (data before weights), and runs; `exit_status` is what the command returns."""

    exit_status = 0

    def __init__(self, arguments: Sequence[str], program: str):
        self.arguments = list(arguments)
        quiet_lightning()
        super().__init__(
            TrainingModule,
            AudioDataModule,
            save_config_callback=None,
            seed_everything_default=42,
            parser_class=Parser,
            parser_kwargs={"prog": program, "fit": {"trains": True}},
            args=self.arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # options

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        built = {"model", "datamodule", "weights_only", "verbose"}
        return {
            "fit": built | {"train_dataloaders", "val_dataloaders"},
            "validate": built | {"dataloaders"},
            "test": built | {"dataloaders"},
        }

    def init_parser(self, *, trains: bool = False, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, Parser)
        parser.trains = trains
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=NonNegativeInt, default=42, help="Seed of weights, data order and noise")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(pl.Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in DEFAULTS.items()})
        parser.add_class_arguments(ModelArguments, "model")
        parser.add_class_arguments(DataArguments, "data")
        parser.add_argument("--plugins", type=str, default="", help="Python modules to import first, separated by commas")
        if isinstance(parser, Parser) and parser.trains:
            parser.add_class_arguments(RunArguments)
            parser.add_argument("--recover", action=ActionYesNo, default=False, help=RECOVER)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Our checkpoints hold no hyperparameters to take options from, and a damaged one is named where it is opened."""

    # the run

    def instantiate_classes(self) -> None:
        """Settings and data configs only; weights come when the data have been read."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.given = self.config_init[self.subcommand]
        import_plugins(self.given.plugins)
        self.seed = int(self.given.seed_everything)
        self.trainer_options = TrainerOptions(dict(self.given.trainer))
        self.datamodule = self.given.data.build(self.seed)
        self.document, text = read_json(_relative(self.given.model.config))
        self.run_config = parse_run_config(self.document, _relative(self.given.model.config), text)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit":
            self.exit_status = self._fit()
        else:
            self._evaluate(subcommand)

    def _fit(self) -> int:
        training = TrainingRun(self._settings())
        machine, module = self._build(training.settings.resume_from)
        training.prepare_folder()
        with training.log_file():
            try:
                ours = training.trainer_arguments(self.datamodule)
                trainer = pl.Trainer(**machine, **self.trainer_options.with_ours(ours, self.datamodule.validates))
                torch.manual_seed(self.seed)
                return training.fit(trainer, module, self.datamodule)
            except ConfigError:
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, it ends the run with status 1 and its traceback in the log
                print(training.failure(error), file=sys.stderr)
                return 1

    def _build(self, resume_from: Path | None) -> tuple[dict[str, Any], TrainingModule]:
        """The machine, tried out, and the module, once the data have been read."""
        machine = self.trainer_options.machine(len(self.run_config.training.required_players()))
        self.datamodule.build(self.run_config, self.subcommand)
        weights, steps = self.given.model.weights, self.trainer_options.steps
        module = build_module(self.run_config, self.document, seed=self.seed, weights=weights, steps=steps, resume_from=resume_from)
        return machine, module

    def _settings(self) -> RunSettings:
        given = self.given
        folder = Path(given.save_dir) / (given.name or Path(_relative(given.model.config)).stem)
        check_logger(given.logger)
        return RunSettings(
            config=self.run_config,
            model_document=self.document,
            dataset_document=read_json(_relative(given.data.config))[0] if given.data.config else {"dataset_type": "synthetic"},
            arguments=self._arguments(),
            folder=folder,
            resume_from=place_run(folder, recover=given.recover, ckpt_path=str(given.ckpt_path or "")),
            resume_command=shlex.join(["stable-audio-tools", *self.arguments, *([] if given.recover else ["--recover"])]),
            max_steps=self.trainer_options.max_steps,
            checkpoint_every=int(given.checkpoint_every),
            save_top_k=given.save_top_k,
            logger=given.logger,
            project=given.project,
        )

    def _arguments(self) -> dict[str, Any]:
        """All options as JSON, which `--config` reads again from any folder."""
        parser, config = self._parser(self.subcommand), self.config[self.subcommand].clone()
        for key, value in config.items(branches=False):
            if isinstance(value, Path_fr):
                config[key] = value.absolute
        config.pop("config", None)
        return json.loads(parser.dump(config, format="json", skip_none=False, skip_validation=True))

    def _evaluate(self, subcommand: str) -> None:
        has_data = self.datamodule.validates if subcommand == "validate" else self.datamodule.tests
        if not has_data:
            key = "val_config" if subcommand == "validate" else "test_config"
            raise ConfigError([Problem(("data", key), "there are no data to evaluate on", f"--data.{key} FILE names a dataset config")])
        checkpoint = Path(self.given.ckpt_path) if self.given.ckpt_path else None
        if checkpoint is not None:
            AtomicCheckpointIO().load_checkpoint(checkpoint)
        machine, module = self._build(checkpoint)
        ours = {"plugins": [AtomicCheckpointIO()]}
        trainer = pl.Trainer(**machine, **self.trainer_options.with_ours(ours, True), enable_checkpointing=False)
        evaluate = trainer.validate if subcommand == "validate" else trainer.test
        evaluate(module, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False)
        for name, value in sorted(trainer.callback_metrics.items()):
            print(f"{name} {float(value):.6g}")


def _relative(path: Path_fr) -> str:
    """As a user would type it here; a path in a YAML file starts from that file."""
    return os.path.relpath(path.absolute)


def run(arguments: Sequence[str], program: str) -> int:
    """Run one of the commands; returns the exit status.

    Args:
        arguments: the command and its options.
    """
    return CommandLine(arguments, program).exit_status
