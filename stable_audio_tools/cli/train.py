"""`train`: assembles a run from flags and INI files, and runs it; `training/run.py` is what it shares with `fit`.

Everything that can be wrong with the input is found before a weight is allocated or a file is written.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.args import configure, resolve
from stable_audio_tools.configs.errors import ConfigError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from stable_audio_tools.training.data_module import AudioDataModule
    from stable_audio_tools.training.module import TrainingModule
    from stable_audio_tools.training.run import RunSettings, TrainingRun

__all__ = ["configure", "import_plugins", "run"]


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    options = resolve(args)
    import_plugins(options["plugins"])

    from stable_audio_tools.training.run import TrainingRun

    settings = _settings(options, _resume_command(args, options))
    data = _data(options)
    machine = _machine(options, players=len(settings.config.training.required_players()))
    data.build(settings.config)
    module = _module(options, settings)
    training = TrainingRun(settings)
    training.prepare_folder()
    with training.log_file():
        try:
            return training.fit(_trainer(options, machine, training, data), module, data)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, it ends the run with status 1 and its traceback in the log
            print(training.failure(error), file=sys.stderr)
            return 1


def _resume_command(args: argparse.Namespace, options: Mapping[str, Any]) -> str:
    """What was typed, with `--recover`: the command that goes on with this run."""
    typed = {name: getattr(args, name) for name in options if getattr(args, name) is not None and name not in ("recover", "ckpt_path")}
    several = {name: value if isinstance(value, list) else [value] for name, value in typed.items()}
    flags = [f"--{name.replace('_', '-')}={value}" for name, values in several.items() for value in values]
    return shlex.join(["stable-audio-tools", "train", *flags, "--recover"])


def import_plugins(names: str) -> None:
    """Import modules of the user's, which may register parts; also from the folder where the program starts.

    Args:
        names: separated by commas.

    Raises:
        ConfigError: one cannot be imported.
    """
    modules = [part.strip() for part in names.split(",") if part.strip()]
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file beside the configs must not hide a package
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ConfigError(f"cannot import {name!r}: {type(error).__name__}: {error}", source="--plugins") from error


def _settings(options: dict[str, Any], resume_command: str) -> RunSettings:
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.training.config import parse_run_config
    from stable_audio_tools.training.run import RunSettings, place_run

    document, text = read_json(options["model_config"])
    folder = Path(options["save_dir"]) / (options["name"] or Path(options["model_config"]).stem)
    return RunSettings(
        config=parse_run_config(document, options["model_config"], text),
        model_document=document,
        dataset_document=read_json(options["dataset_config"])[0] if options["dataset_config"] else {"dataset_type": "synthetic"},
        arguments=options,
        folder=folder,
        resume_from=place_run(folder, recover=options["recover"], ckpt_path=options["ckpt_path"]),
        resume_command=resume_command,
        max_steps=options["max_steps"] or None,
        max_minutes=options["max_minutes"],
        checkpoint_every=options["checkpoint_every"],
        save_top_k=options["save_top_k"],
        logger=options["logger"],
        project=options["project"],
    )


def _data(options: Mapping[str, Any]) -> AudioDataModule:
    from stable_audio_tools.training.data_module import AudioDataModule

    return AudioDataModule(
        options["dataset_config"] or None,
        options["val_dataset_config"] or None,
        batch_size=options["batch_size"],
        num_workers=options["num_workers"],
        seed=options["seed"],
        allow_code=options["allow_code"],
    )


def _machine(options: Mapping[str, Any], *, players: int) -> dict[str, Any]:
    from stable_audio_tools.training.loggers import check_logger
    from stable_audio_tools.training.machine import machine_arguments

    check_logger(options["logger"])
    asked = {name: options[name] for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
    return machine_arguments(asked, players=players)


def _module(options: Mapping[str, Any], settings: RunSettings) -> TrainingModule:
    from stable_audio_tools.training.start import StartingWeights, StepSettings, build_module

    return build_module(
        settings.config,
        settings.model_document,
        seed=options["seed"],
        weights=StartingWeights(
            pretrained=options["pretrained_ckpt_path"],
            pretransform=options["pretransform_ckpt_path"],
            fold_weight_norm=options["remove_pretransform_weight_norm"],
            allow_partial=options["allow_partial"],
        ),
        steps=StepSettings(options["accum_batches"], options["gradient_clip_val"], options["log_every"], options["max_bad_steps"]),
        resume_from=settings.resume_from,
    )


def _trainer(options: Mapping[str, Any], machine: Mapping[str, Any], training: TrainingRun, data: AudioDataModule) -> pl.Trainer:
    import lightning.pytorch as pl
    import torch

    every = options["val_every"] * options["accum_batches"]
    validates = data.validates and every > 0
    trainer = pl.Trainer(
        **machine,
        **training.trainer_arguments(data),
        max_epochs=options["max_epochs"] or -1,
        val_check_interval=every if validates else None,
        check_val_every_n_epoch=None if validates else 1,
        limit_val_batches=1.0 if validates else 0,
    )
    torch.manual_seed(options["seed"])
    return trainer
