"""`train`: assembles a run from configs and flags, runs it, and leaves weights, demos and a report in the run folder.

Everything that can be wrong with the input is found before a weight is allocated or a file is written.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import random
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.args import configure, resolve
from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch import nn

    from stable_audio_tools.training.config import AnyRun
    from stable_audio_tools.training.module import TrainingModule

__all__ = ["configure", "run"]

log = logging.getLogger(__name__)

DEMO_BATCH_SIZE = 8


@dataclass
class Plan:
    """A run as asked for, validated; nothing is built yet."""

    options: dict[str, Any]
    config: AnyRun
    model_document: dict[str, Any]
    dataset: Any
    dataset_document: dict[str, Any]
    val_dataset: Any
    folder: Path
    resume_from: Path | None
    resume_command: str
    machine: dict[str, Any]

    @property
    def max_steps(self) -> int | None:
        return self.options["max_steps"] or None


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    options = resolve(args)
    _import_plugins(options["plugins"])
    plan = _plan(options, _resume_command(args, options))
    loaders = _loaders(plan)
    module = _module(plan, _model(plan))
    _prepare_folder(plan)
    with _log_file(plan.folder / "train.log"):
        try:
            return _train(plan, module, loaders)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, it ends the run with status 1 and its traceback in the log
            return _failed(error, plan)


def _resume_command(args: argparse.Namespace, options: Mapping[str, Any]) -> str:
    """What was typed, with `--recover`: the command that goes on with this run."""
    typed = {name: getattr(args, name) for name in options if getattr(args, name) is not None and name not in ("recover", "ckpt_path")}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in typed.items()]
    return shlex.join(["stable-audio-tools", "train", *flags, "--recover"])


def _import_plugins(names: str) -> None:
    modules = [part.strip() for part in names.split(",") if part.strip()]
    if modules and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file beside the configs must not hide a package
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ConfigError(f"cannot import {name!r}: {type(error).__name__}: {error}", source="--plugins") from error


# what was asked for


def _plan(options: dict[str, Any], resume_command: str) -> Plan:
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.data.dataset import parse_dataset_config
    from stable_audio_tools.training.config import parse_run_config

    document, text = read_json(options["model_config"])
    config = parse_run_config(document, options["model_config"], text)
    dataset_document = read_json(options["dataset_config"])[0] if options["dataset_config"] else {"dataset_type": "synthetic"}
    dataset = parse_dataset_config(options["dataset_config"] or dataset_document)
    _allow_code(options, dataset)
    val_dataset = _validation_dataset(options, dataset)
    folder, resume_from = _folder(options)
    machine = _machine(options, players=len(config.training.required_players()))
    return Plan(options, config, document, dataset, dataset_document, val_dataset, folder, resume_from, resume_command, machine)


def _allow_code(options: Mapping[str, Any], dataset: Any) -> None:
    """Raises ConfigError, with line and column, where the dataset config names code that was not allowed."""
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.data.metadata_module import require_permission

    try:
        require_permission(getattr(dataset, "code", ()), options["allow_code"])
    except ConfigError as error:
        raise ConfigError(error.problems, options["dataset_config"], read_json(options["dataset_config"])[1]) from None


def _validation_dataset(options: Mapping[str, Any], dataset: Any) -> Any:
    from stable_audio_tools.data.dataset import parse_dataset_config

    if options["val_dataset_config"]:
        return parse_dataset_config(options["val_dataset_config"])
    return dataset.held_out() if dataset.dataset_type == "synthetic" and options["val_every"] else None


def _folder(options: dict[str, Any]) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to resume from."""
    from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO, newest_good_checkpoint

    folder = Path(options["save_dir"]) / (options["name"] or Path(options["model_config"]).stem)
    _check_writable(folder, f"--save-dir {options['save_dir']}")
    if options["recover"] and (newest := newest_good_checkpoint(folder / "checkpoints")):
        return folder, newest
    if options["ckpt_path"]:
        AtomicCheckpointIO().load_checkpoint(options["ckpt_path"])
        return folder, Path(options["ckpt_path"])
    if not options["recover"] and any((folder / "checkpoints").glob("*.ckpt")):
        fix = "--recover goes on with it; another --name starts a new run"
        raise ConfigError([Problem((), "this run exists already and has checkpoints", fix)], source=str(folder))
    return folder, None


def _check_writable(folder: Path, source: str) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "may not be written" if existing.is_dir() else "is a file"
        raise ConfigError([Problem((), f"{existing} {what}", "choose another --save-dir or --name")], source=source)


def _machine(options: Mapping[str, Any], *, players: int) -> dict[str, Any]:
    """Lightning's arguments for where and how to compute, and for the logger, tried out before anything is built.

    Players take turns, so that in a batch most weights get no gradient, which plain DDP takes for a mistake.

    Raises:
        ConfigError: this machine has no such accelerator, devices, strategy or precision, or the logger is not installed.
    """
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy

    from stable_audio_tools.training.loggers import check_logger

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # only now: its import sets its own level
    check_logger(options["logger"])
    asked = {name: options[name] for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
    machine = asked | {"devices": _devices(asked["devices"]), "precision": _precision(asked["precision"], asked["accelerator"])}
    try:
        trial = pl.Trainer(**machine, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    except Exception as error:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asked.items() if value not in ("auto", 1))
        raise ConfigError([Problem((), f"{error}", "auto takes what this machine has")], source=flags) from error
    if players > 1 and asked["strategy"] in ("auto", "ddp") and isinstance(trial.strategy, DDPStrategy):
        machine["strategy"] = "ddp_find_unused_parameters_true"
    return machine


# data and weights


@dataclass
class Loaders:
    train: Any
    validation: Any
    demo: Any


def _loaders(plan: Plan) -> Loaders:
    from stable_audio_tools.data.dataset import create_dataloader_from_config
    from stable_audio_tools.data.loader import AudioLoader

    options, config = plan.options, plan.config
    shared = {
        "sample_size": config.sample_size,
        "sample_rate": config.sample_rate,
        "audio_channels": config.audio_channels,
        "seed": options["seed"],
        "allow_code": options["allow_code"],
    }

    def loader(dataset: Any, batch_size: int, workers: int, shuffle: bool) -> Any:
        return create_dataloader_from_config(dataset, batch_size, num_workers=workers, shuffle=shuffle, **shared)

    train = loader(plan.dataset, options["batch_size"], options["num_workers"], True)
    validation = loader(plan.val_dataset, options["batch_size"], 0, False) if plan.val_dataset is not None else None
    demo = AudioLoader((validation or train).dataset, DEMO_BATCH_SIZE, seed=options["seed"], shuffle=False)
    return Loaders(train, validation, demo)


def _model(plan: Plan) -> nn.Module:
    import torch

    from stable_audio_tools.models.factory import create_model_from_config

    seed = plan.options["seed"]
    random.seed(seed)
    torch.manual_seed(seed)
    model = create_model_from_config(plan.model_document)
    _load_weights(model, plan.options)
    return model


def _load_weights(model: Any, options: Mapping[str, Any]) -> None:
    from stable_audio_tools.models.checkpoints import load_into, load_weights
    from stable_audio_tools.models.utils import remove_weight_norm_from_model

    allow = options["allow_partial"]
    if options["pretrained_ckpt_path"]:
        log.info("%s", load_into(model, load_weights(options["pretrained_ckpt_path"]), allow_partial=allow))
    if not options["pretransform_ckpt_path"] and not options["remove_pretransform_weight_norm"]:
        return
    if getattr(getattr(model, "pretransform", None), "model", None) is None:
        flags = "--pretransform-ckpt-path, --remove-pretransform-weight-norm"
        raise ConfigError("this model has no pretransform with weights", source=flags)
    if options["remove_pretransform_weight_norm"] == "pre_load":
        remove_weight_norm_from_model(model.pretransform)
    if options["pretransform_ckpt_path"]:
        weights = load_weights(options["pretransform_ckpt_path"])
        log.info("%s", load_into(model.pretransform.model, weights, allow_partial=allow))
    if options["remove_pretransform_weight_norm"] == "post_load":
        remove_weight_norm_from_model(model.pretransform)


def _module(plan: Plan, model: nn.Module) -> TrainingModule:
    """The training of `model`.

    Raises:
        ConfigError: the checkpoint to resume from is of another model or training.
    """
    from stable_audio_tools.training.checkpoint_io import check_fits
    from stable_audio_tools.training.factory import create_training_wrapper_from_config

    options = plan.options
    module = create_training_wrapper_from_config(plan.config, model)
    module.model_config = plan.model_document
    module.accumulate_batches = options["accum_batches"]
    module.log_every_n_steps = options["log_every"]
    module.clip_grad_norm = options["gradient_clip_val"] or module.clip_grad_norm
    if plan.resume_from is not None:
        check_fits(plan.resume_from, module)
    return module


# the run


def _train(plan: Plan, module: TrainingModule, loaders: Loaders) -> int:
    import torch

    from stable_audio_tools.training.checkpoints import RunCheckpoint, SignalGuard
    from stable_audio_tools.training.loggers import end_runs
    from stable_audio_tools.training.run_folder import RunFolder

    options = plan.options
    checkpoint = RunCheckpoint(plan.folder / "checkpoints", every=options["checkpoint_every"], keep=options["save_top_k"])
    signals = SignalGuard(checkpoint)
    page = RunFolder(plan.folder, name=plan.folder.name, max_steps=plan.max_steps, resume=plan.resume_command)
    trainer = _trainer(plan, loaders, signals, checkpoint, page)
    torch.manual_seed(options["seed"])
    try:
        trainer.fit(module, loaders.train, loaders.validation, ckpt_path=plan.resume_from, weights_only=True)
    finally:
        end_runs(trainer.loggers)
    try:
        if trainer.is_global_zero:
            _export(plan, module)
        if checkpoint.unsaved:
            raise OSError(checkpoint.unsaved)
    except OSError as error:
        page.update(trainer, module, "failed", error=str(error))
        raise
    page.update(trainer, module, "stopped" if signals.exit_status else "finished")
    return signals.exit_status or 0


def _prepare_folder(plan: Plan) -> None:
    """Make the run folder and write down what was asked for."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from stable_audio_tools.training.run_folder import write_json

    try:
        (plan.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if getattr(rank_zero_only, "rank", 0) == 0:
            write_json(plan.folder / "config.json", plan.model_document)
            write_json(plan.folder / "dataset.json", plan.dataset_document)
            write_json(plan.folder / "args.json", plan.options)
        (plan.folder / "train.log").open("a").close()
    except OSError as error:
        raise ConfigError(f"cannot write the run folder: {error.strerror}", source=f"--save-dir {plan.folder}") from None


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Messages inside go into the file too."""
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(file)
    try:
        log.info("run folder %s", path.parent)
        yield
    finally:
        logging.getLogger().removeHandler(file)
        file.close()


def _trainer(plan: Plan, loaders: Loaders, signals: pl.Callback, checkpoint: pl.Callback, page: pl.Callback) -> pl.Trainer:
    import lightning.pytorch as pl

    from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO, step_of
    from stable_audio_tools.training.checkpoints import StopAtStep, StopAtTime
    from stable_audio_tools.training.factory import create_demo_callback_from_config
    from stable_audio_tools.training.loggers import create_loggers
    from stable_audio_tools.training.progress import RunProgress

    options = plan.options
    demos = create_demo_callback_from_config(plan.config, demo_dl=loaders.demo, folder=plan.folder / "demos")
    limits: list[pl.Callback] = [StopAtStep(plan.max_steps)] if plan.max_steps else []
    limits += [StopAtTime(options["max_minutes"])] if options["max_minutes"] else []
    every = options["val_every"] * options["accum_batches"]
    shared = {
        "name": plan.folder.name,
        "project": options["project"],
        "config": {"model": plan.model_document, "dataset": plan.dataset_document, "args": options},
    }
    resume_step = step_of(plan.resume_from) if plan.resume_from else None
    loggers = create_loggers(options["logger"], plan.folder, resume_step=resume_step, **shared)
    return pl.Trainer(
        **plan.machine,
        max_steps=-1,
        max_epochs=options["max_epochs"] or -1,
        val_check_interval=every if loaders.validation is not None and every else None,
        check_val_every_n_epoch=None if loaders.validation is not None and every else 1,
        limit_val_batches=1.0 if every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=[signals, *limits, RunProgress(plan.max_steps), demos, checkpoint, page],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=plan.folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _devices(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _precision(asked: str, accelerator: str) -> Any:
    import torch

    if asked != "auto":
        return asked
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"


def _export(plan: Plan, module: Any) -> None:
    from stable_audio_tools.models.checkpoints import save_model

    path = plan.folder / "exports" / "model.safetensors"
    path.parent.mkdir(exist_ok=True)
    facts = {name: json.dumps(value) for name, value in module.strategy.checkpoint_metadata().items()}
    save_model(path, module.sampling_model, plan.model_document, facts | {"train_step": str(module.train_step)})
    log.info("weights: %s\nreport: %s", path, plan.folder / "index.html")


def _failed(error: Exception, plan: Plan) -> int:
    """Say the cause; the traceback goes into `train.log`."""
    with contextlib.suppress(OSError), (plan.folder / "train.log").open("a") as file:  # the disk may be what failed
        traceback.print_exception(error, file=file)
    last = plan.folder / "checkpoints" / "last.ckpt"
    hint = f"; --recover goes on from {last}" if last.exists() else ""
    print(f"error: training failed: {type(error).__name__}: {error}\n  = traceback in {plan.folder / 'train.log'}{hint}", file=sys.stderr)
    return 1
