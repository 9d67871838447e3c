"""`train`: assembles a run from flags and INI files, and runs it; `training/run.py` is what it shares with `fit`.

Everything that can be wrong with the input is found before a weight is allocated or a file is written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.args import configure, resolve
from stable_audio_tools.cli.plugins import import_plugins
from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.profilers import Profiler

    from stable_audio_tools.training.data_module import AudioDataModule
    from stable_audio_tools.training.evaluation import PeriodicEvaluationConfig
    from stable_audio_tools.training.module import TrainingModule
    from stable_audio_tools.training.monitor import Goal
    from stable_audio_tools.training.run import RunSettings, TrainingRun
    from stable_audio_tools.training.sections import TrainingConfig

__all__ = ["configure", "run"]

LESS_IS_BETTER = ("loss", "/frechet", "/kernel", "/kad")  # in names of metrics


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    options = resolve(args)
    import_plugins(options["plugins"])
    settings = _settings(options, _resume_command(args, options))
    data = _data(options)
    settings = replace(settings, goal=_goal(options, settings.config.training.evaluation, validates=data.validates))
    machine = _machine(options, settings.config.training)
    with _matmul_precision(options["matmul_precision"]):
        data.build(settings.config)
        if options["find_lr"]:
            return _find_learning_rates(options, settings, machine, data)
        if options["batch_size"] == "auto":
            data.use_batch_size(_batch_size(options, settings, machine, data))
            settings = replace(settings, arguments={**options, "batch_size": data.batch_size})
        return _train(options, settings, machine, data)


def _train(options: Mapping[str, Any], settings: RunSettings, machine: Mapping[str, Any], data: AudioDataModule) -> int:
    from stable_audio_tools.training.run import TrainingRun

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
        max_stall_minutes=options["max_stall_minutes"],
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
        batch_size=1 if options["batch_size"] == "auto" else options["batch_size"],
        num_workers=options["num_workers"],
        seed=options["seed"],
        allow_code=options["allow_code"],
    )


def _goal(options: Mapping[str, Any], evaluation: PeriodicEvaluationConfig | None, *, validates: bool) -> Goal | None:
    """What validation, or evaluation, is watched for.

    Raises:
        ConfigError: options that can have no effect, or do not say what is better.
    """
    from stable_audio_tools.training.monitor import EVALUATED, Goal

    metric = options["monitor"] or Goal.metric
    asked = [name for name in ("monitor", "monitor_mode", "early_stopping_patience", "early_stopping_min_delta") if options[name]]
    if metric.startswith(EVALUATED):
        if evaluation is None:
            fix = 'add "evaluation": {"every": 1000} to the training section of the model config'
            raise ConfigError([Problem((), "is about evaluation, which this run has not", fix)], f"--monitor {metric}")
        evaluation.check_watched(metric.removeprefix(EVALUATED))
    measured = metric.startswith(EVALUATED) or (validates and options["val_every"] > 0)
    if asked and not measured:
        fix = "set --val-every above 0" if validates else "give --val-dataset-config"
        raise ConfigError([Problem((), "is about validation, which this run has not", fix)], _flags(asked))
    if asked and not (options["save_best"] or options["early_stopping_patience"]):
        raise ConfigError([Problem((), "has no effect", "set --save-best or --early-stopping-patience above 0")], _flags(asked))
    if options["early_stopping_min_delta"] and not options["early_stopping_patience"]:
        raise ConfigError([Problem((), "has no effect", "set --early-stopping-patience above 0")], "--early-stopping-min-delta")
    if not (measured and (options["save_best"] or options["early_stopping_patience"])):
        return None
    if not metric.startswith(("val/", "train/", EVALUATED)):
        raise ConfigError([Problem((), "names of metrics begin with val/, train/ or eval/", "val/loss is one")], f"--monitor {metric}")
    if not options["monitor_mode"] and not any(word in metric for word in LESS_IS_BETTER):
        raise ConfigError([Problem((), "is less of it better, or more?", "say --monitor-mode min or max")], f"--monitor {metric}")
    waiting = {"patience": options["early_stopping_patience"], "min_delta": options["early_stopping_min_delta"]}
    return Goal(metric, options["monitor_mode"] or "min", options["save_best"], **waiting)


def _flags(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _machine(options: Mapping[str, Any], training: TrainingConfig) -> dict[str, Any]:
    from stable_audio_tools.training.loggers import check_logger
    from stable_audio_tools.training.machine import machine_arguments

    check_logger(options["logger"])
    asked = {name: options[name] for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
    return machine_arguments(asked, players=len(training.required_players()), rests=training.rests_weights())


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
        steps=StepSettings(
            accumulate_batches=options["accum_batches"],
            clip_grad_norm=options["gradient_clip_val"],
            log_every=options["log_every"],
            max_bad_steps=options["max_bad_steps"],
            compile=options["compile"],
        ),
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
        profiler=_profiler(options["profiler"], training.folder),
        val_check_interval=every if validates else None,
        check_val_every_n_epoch=None if validates else 1,
        limit_val_batches=1.0 if validates else 0,
    )
    torch.manual_seed(options["seed"])
    return trainer


def _profiler(kind: str, folder: Path) -> Profiler | None:
    """Lightning's profiler of that name; it writes `profile` files into the run folder when the run ends."""
    from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return kinds[kind](dirpath=folder, filename="profile") if kind != "none" else None


@contextlib.contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# what is found by trying


def _batch_size(options: Mapping[str, Any], settings: RunSettings, machine: Mapping[str, Any], data: AudioDataModule) -> int:
    """What `--batch-size auto` means: for a run that goes on in its folder, what it meant at first."""
    from stable_audio_tools.training.finders import find_batch_size

    if settings.resume_from is not None and settings.resume_from.parent.parent == settings.folder:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((settings.folder / "args.json").read_text(encoding="utf-8"))["batch_size"])
    return find_batch_size(
        settings.config,
        lambda: _module(options, settings),
        data.trial_batches,
        machine,
        items=len(data.trial_batches(1)),
        accumulate=options["accum_batches"],
    )


def _find_learning_rates(options: Mapping[str, Any], settings: RunSettings, machine: Mapping[str, Any], data: AudioDataModule) -> int:
    """Say which learning rate suits each player; returns the exit status."""
    from stable_audio_tools.training.finders import find_learning_rates, write_range_tests

    if settings.resume_from is not None:
        raise ConfigError([Problem((), "tries rates on new weights", "leave --recover and --ckpt-path out")], "--find-lr")
    if options["batch_size"] == "auto":
        raise ConfigError([Problem((), "rates depend on the batch size", "give --batch-size a number")], "--find-lr")
    tests = find_learning_rates(lambda: _module(options, settings), data.trial_batches, machine, batch_size=options["batch_size"])
    settings.folder.mkdir(parents=True, exist_ok=True)
    write_range_tests(tests, settings.folder / "lr_finder.csv")
    for test in tests:
        print(f"{test.player}: learning rate {test.suggestion:.2g}" if test.suggestion else f"{test.player}: no rate made the loss fall")
    print(f"curves: {settings.folder / 'lr_finder.csv'}")
    return 0
