"""The random generators that a training step may draw from (torch's, python's, numpy's): their state as a checkpoint can hold it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Start every generator of this process anew."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def rng_state() -> dict[str, Any]:
    """The state of this process's generators, on CUDA that of its current device, as CPU tensors and numbers."""
    _, words, next_gauss = random.getstate()
    kept = np.random.get_state(legacy=False)
    numbers = {**kept["state"], "key": torch.from_numpy(kept["state"]["key"].astype(np.int64))}
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": {"words": torch.tensor(words), "next_gauss": next_gauss},
        "numpy": {"state": numbers, "has_gauss": kept["has_gauss"], "gauss": kept["gauss"]},
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Go on as after `rng_state()`. A CUDA state is left alone where there is no CUDA."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version = random.getstate()[0]
    random.setstate((version, tuple(state["python"]["words"].tolist()), state["python"]["next_gauss"]))
    numbers = state["numpy"]
    key = numbers["state"]["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state({"bit_generator": "MT19937", **numbers, "state": {**numbers["state"], "key": key}})
