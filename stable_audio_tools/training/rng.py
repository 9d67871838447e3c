"""The random generators that a training step draws from, as a checkpoint can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def rng_state() -> dict[str, Any]:
    """The state of torch's generators as tensors, which a weights-only load accepts."""
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_rng(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
