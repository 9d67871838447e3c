"""Where and how to compute: Lightning's arguments for it, tried out before anything is built."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from stable_audio_tools.configs.errors import ConfigError, Problem


def machine_arguments(asked: Mapping[str, Any], *, players: int, flag: str = "--{}") -> dict[str, Any]:
    """Trainer arguments for where and how to compute.

    Players take turns, so that in a batch most weights get no gradient, which plain DDP takes for a mistake.

    Args:
        asked: accelerator, devices, num_nodes, strategy and precision.
        players: how many optimizers take turns.
        flag: how messages write an option.

    Raises:
        ConfigError: this machine has no such accelerator, devices, strategy or precision.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # only now: their import sets a level of its own
    machine = dict(asked) | {"devices": _devices(asked["devices"]), "precision": _precision(asked["precision"], asked["accelerator"])}
    try:
        trial = pl.Trainer(**machine, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    except Exception as error:
        flags = " ".join(f"{flag.format(name.replace('_', '-'))} {value}" for name, value in asked.items() if value not in ("auto", 1))
        raise ConfigError([Problem((), f"{error}", "auto takes what this machine has")], source=flags) from error
    if players > 1 and asked["strategy"] in ("auto", "ddp") and isinstance(trial.strategy, DDPStrategy):
        machine["strategy"] = "ddp_find_unused_parameters_true"
    return machine


def _devices(asked: Any) -> Any:
    return int(asked) if isinstance(asked, str) and asked.isdigit() else asked


def _precision(asked: Any, accelerator: Any) -> Any:
    if asked != "auto":
        return asked
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"
