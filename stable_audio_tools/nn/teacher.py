"""A network that is only asked, never trained or saved."""

from __future__ import annotations

from typing import Any, Self

from torch import nn


class Teacher(nn.Module):
    """Holds a network in eval mode and without gradients: it moves with its owner, and is in no checkpoint of it.

    module: the network.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return self

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A strict load of the owner would miss the keys that are not saved; the network's own values stand in.
        state_dict.update(self.module.state_dict(prefix=f"{prefix}module."))
        super()._load_from_state_dict(state_dict, prefix, *args)
