"""`fit`, `validate` and `test`: Lightning's own command line over the module, the data and the run folder of `train`.

Every option of Lightning's Trainer is `--trainer.NAME` or a key of the YAML file that `--config` names. Steps are train steps, as
everywhere here, and what Lightning refuses under manual optimization (accumulation, clipping) is given to our own loop.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from jsonargparse import ActionYesNo
from jsonargparse.typing import NonNegativeInt, Path_fr
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from stable_audio_tools.cli.lightning_options import DEFAULTS, DataArguments, ModelArguments, RunArguments, TrainerOptions
from stable_audio_tools.cli.plugins import import_plugins
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.configs.suggest import closest
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule
from stable_audio_tools.training.loggers import check_logger
from stable_audio_tools.training.machine import quiet_lightning
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.run import RunSettings, TrainingRun, place_run
from stable_audio_tools.training.start import build_module

UNKNOWN = re.compile(r"(?:unrecognized arguments: --|does not accept option ')([^\s='\"]+)")
"""How jsonargparse begins what it says of a flag, or of a key of a YAML file, that does not exist."""
RECOVER = "Resume this run from its newest good checkpoint if it has one, else start it"


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
        self.config_init = self.parser.instantiate(self.config)
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
        machine = self.trainer_options.machine(self.run_config.training)
        self.datamodule.build(self.run_config, self.subcommand)
        weights, steps = self.given.model.weights, self.trainer_options.steps
        if self.subcommand == "fit":
            steps = replace(steps, max_bad_steps=int(self.given.max_bad_steps), compile=self.given.compile)
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
            max_stall_minutes=float(self.given.max_stall_minutes),
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
        return json.loads(parser.dump(config, format="json", skip_unset=False, skip_validation=True))

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
