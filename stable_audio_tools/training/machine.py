"""Where and how to compute: Lightning's arguments for it, tried out before anything is built."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.training.parallel import FullyShardedStrategy


def quiet_lightning() -> None:
    """Messages of Lightning from warnings on; its import sets a level of its own."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def machine_arguments(asked: Mapping[str, Any], *, players: int, rests: bool, flag: Callable[[str], str] = as_flag) -> dict[str, Any]:
    """Trainer arguments for where and how to compute.

    Args:
        asked: accelerator, devices, num_nodes, strategy and precision.
        players: how many optimizers take turns.
        rests: some weights get no gradient in some steps, which plain DDP takes for a mistake.
        flag: how messages write an option.

    Raises:
        ConfigError: this machine has no such accelerator, devices, strategy or precision.
    """
    quiet_lightning()
    _check_strategy(asked["strategy"], players, flag("strategy"))
    machine = dict(asked) | {"devices": _devices(asked["devices"]), "precision": _precision(asked["precision"], asked["accelerator"])}
    if asked["strategy"] == "fsdp":
        machine["strategy"] = FullyShardedStrategy()
    try:
        trial = pl.Trainer(
            **copy.deepcopy(machine), logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        )
    except Exception as error:
        flags = " ".join(f"{flag(name)} {value}" for name, value in asked.items() if value not in ("auto", 1))
        raise ConfigError([Problem((), f"{error}", "auto takes what this machine has")], source=flags) from error
    if asked["strategy"] == "fsdp" and trial.world_size == 1:
        what, fix = "it shares a model out among several devices, and this run has one", f"{flag('devices')} 2 or more, or another strategy"
        raise ConfigError([Problem((), what, fix)], source=f"{flag('strategy')} fsdp")
    if rests and asked["strategy"] in ("auto", "ddp") and isinstance(trial.strategy, DDPStrategy):
        machine["strategy"] = "ddp_find_unused_parameters_true"
    return machine


def _check_strategy(asked: Any, players: int, flag: str) -> None:
    """Raises ConfigError where DeepSpeed is asked for and cannot be used."""
    if not isinstance(asked, str) or not asked.startswith("deepspeed"):
        return
    if importlib.util.find_spec("deepspeed") is None:
        fix = f"pip install deepspeed, or {flag} fsdp"
        raise ConfigError([Problem((), "the package deepspeed is not installed", fix)], f"{flag} {asked}")
    if players > 1:
        what = f"it takes one optimizer, and this training has {players}"
        raise ConfigError([Problem((), what, f"{flag} ddp or fsdp")], f"{flag} {asked}")


def _devices(asked: Any) -> Any:
    return int(asked) if isinstance(asked, str) and asked.isdigit() else asked


def _precision(asked: Any, accelerator: Any) -> Any:
    if asked != "auto":
        return asked
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"
